//! How text is fitted into the columns that there are.

use ::console::measure_text_width as width_of;

/// Columns between those of a table.
pub const GAP: usize = 2;
/// What the first column of a table leaves to those that must be shown: all but this, of so much text.
const FIRST: usize = 32;
/// The same for those that may be.
const FIRST_IN_FULL: usize = 64;

/// How wide the first column of a table is, and how many of the `others` are shown, all as wide as their text. These
/// stand in the order of their importance; the first, as many as are `needed`, may have the first column's text wrapped.
/// Where `width` is nothing, so is nothing.
pub fn fit(first: usize, needed: usize, others: &[usize], width: Option<usize>) -> (usize, usize) {
    let Some(width) = width else {
        return (first, others.len());
    };
    let mut rest = width;
    let mut shown = 0;
    for column in others {
        let kept = first.min(if shown < needed { FIRST } else { FIRST_IN_FULL });
        match rest.checked_sub(column + GAP) {
            Some(left) if left >= kept => rest = left,
            _ => break,
        }
        shown += 1;
    }
    (first.min(rest), shown)
}

/// A name in at most two lines of so many columns, parted before a word where that is possible. What does not fit is
/// left out of its middle.
pub fn wrap(name: &str, width: usize) -> String {
    if width_of(name) <= width {
        return name.into();
    }
    let rest_width = width.saturating_sub(INDENT.len());
    let line: String = fitting(name.chars(), width).collect();
    let (mut word, mut is_braced) = (None, false);
    for (at, c) in line.char_indices() {
        match c {
            '{' => is_braced = true,
            '}' => is_braced = false,
            '.' | '_' | '/' if !is_braced => word = Some(at + 1),
            _ => {}
        }
    }
    let fits = |at: &usize| width_of(&name[*at..]) <= rest_width;
    let (first, rest) = name.split_at(word.filter(fits).unwrap_or(line.len()));
    format!("{first}\n{INDENT}{}", elide(rest, rest_width))
}

/// What the second line of a name starts with.
const INDENT: &str = "  ";

/// The first characters, as many as fit into so many columns.
fn fitting(chars: impl Iterator<Item = char>, width: usize) -> impl Iterator<Item = char> {
    let mut used = 0;
    chars.take_while(move |c| {
        used += width_of(c.encode_utf8(&mut [0; 4]));
        used <= width
    })
}

/// Text in so many columns; what does not fit is left out of its middle.
pub fn elide(text: &str, width: usize) -> String {
    if width_of(text) <= width {
        return text.into();
    }
    let room = width.saturating_sub(1);
    let start: String = fitting(text.chars(), room - room / 2).collect();
    let end: Vec<_> = fitting(text.chars().rev(), room / 2).collect();
    format!("{start}…{}", String::from_iter(end.into_iter().rev()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_go_from_the_right() {
        let others = [2, 9, 6];
        assert_eq!(fit(50, 2, &others, None), (50, 3));
        assert_eq!(fit(50, 2, &others, Some(80)), (50, 3));
        assert_eq!(fit(50, 2, &others, Some(72)), (50, 2));
        assert_eq!(fit(50, 3, &others, Some(72)), (49, 3));
        assert_eq!(fit(70, 0, &others, Some(87)), (64, 3));
        assert_eq!(fit(70, 3, &others, Some(55)), (32, 3));
        assert_eq!(fit(70, 3, &others, Some(54)), (39, 2));
        assert_eq!(fit(10, 1, &others, Some(25)), (10, 2));
        assert_eq!(fit(70, 1, &others, Some(20)), (20, 0));
    }

    #[test]
    fn names_are_parted_before_words() {
        let name = "model.layers.{0..31}.mlp.up_proj.weight";
        assert_eq!(wrap(name, 39), name);
        assert_eq!(
            wrap(name, 38),
            "model.layers.{0..31}.mlp.up_proj.\n  weight"
        );
        assert_eq!(
            wrap(name, 22),
            "model.layers.{0..31}.\n  mlp.up_proj.weight"
        );
        assert_eq!(wrap(name, 16), "model.layers.{0.\n  .31}.ml…weight");
        let experts = "layers.{0..31}.experts.{0..127}.w1";
        assert_eq!(wrap(experts, 29), "layers.{0..31}.experts.\n  {0..127}.w1");
        assert_eq!(wrap("nothingtopartitat", 10), "nothingtop\n  artitat");
    }

    #[test]
    fn the_middle_is_left_out() {
        assert_eq!(elide("abcdef", 6), "abcdef");
        assert_eq!(elide("abcdef", 5), "ab…ef");
        assert_eq!(elide("abcdef", 4), "ab…f");
        assert_eq!(elide("abcdef", 1), "…");
        // Characters of two columns.
        assert_eq!(elide("重み重み", 5), "重…み");
    }

    proptest! {
        #[test]
        fn lines_fit(name in "[a-z重.]{0,60}", width in 8usize..40) {
            let wrapped = wrap(&name, width);
            prop_assert!(wrapped.lines().count() <= 2);
            prop_assert!(wrapped.lines().all(|line| width_of(line) <= width), "{wrapped}");
            let elided = elide(&name, width);
            prop_assert!(width_of(&elided) <= width);
        }
    }
}
