//! Tensors that differ in the numbers of their names alone, such as those of layers, taken together.

use std::{collections::BTreeMap, path::Path};

use clap::ValueEnum;
use globset::GlobMatcher;
use zipserv::checkpoint::{Report, Storage, TensorReport};

/// In which order tensors are told.
#[derive(Clone, Copy, ValueEnum)]
pub enum Sort {
    /// The largest first, before compression
    Size,
    /// By name, numbers by value
    Name,
    /// Those that shrink least first
    Ratio,
}

/// A tensor and the file that has it.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    pub file: &'a Path,
    pub tensor: &'a TensorReport,
}

/// The tensors of a report whose names match, in the order of their files and data.
pub fn entries<'a>(report: &'a Report, filter: Option<&GlobMatcher>) -> Vec<Entry<'a>> {
    let files = report.files.iter();
    let entries = files.flat_map(|file| {
        let tensors = file.tensors.iter();
        tensors.map(|tensor| Entry {
            file: &file.path,
            tensor,
        })
    });
    entries
        .filter(|entry| filter.is_none_or(|glob| glob.is_match(&entry.tensor.name)))
        .collect()
}

/// Tensors of one kind whose names have the same words.
pub struct Group<'a> {
    /// At least one.
    entries: Vec<Entry<'a>>,
}

/// Part of a name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    /// A number, which stands between separators or the ends: its value and how it is written.
    Number(u64, &'a str),
    Text(&'a str),
}

/// What separates the words and numbers of a name.
const SEPARATORS: [char; 5] = ['.', '_', '/', '-', ':'];

fn parts(name: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    for piece in name.split_inclusive(SEPARATORS) {
        let word = piece.strip_suffix(SEPARATORS).unwrap_or(piece);
        let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        match word.parse() {
            Ok(number) if is_number => {
                parts.push(Part::Number(number, word));
                parts.push(Part::Text(&piece[word.len()..]));
            }
            _ => parts.push(Part::Text(piece)),
        }
    }
    parts
}

/// Puts together what differs in numbers alone, in the order of the first of each.
pub fn group(entries: Vec<Entry<'_>>) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut known: BTreeMap<(Vec<Option<&str>>, &str, Storage), usize> = BTreeMap::new();
    for entry in entries {
        let words = parts(&entry.tensor.name)
            .into_iter()
            .map(|part| match part {
                Part::Number(..) => None,
                Part::Text(text) => Some(text),
            });
        let TensorReport { dtype, storage, .. } = entry.tensor;
        let at = *known
            .entry((words.collect(), dtype, *storage))
            .or_insert(groups.len());
        match groups.get_mut(at) {
            Some(group) => group.entries.push(entry),
            None => groups.extend(single([entry])),
        }
    }
    groups
}

/// Each for itself.
pub fn single<'a>(entries: impl IntoIterator<Item = Entry<'a>>) -> impl Iterator<Item = Group<'a>> {
    let of_one = |entry| Group {
        entries: vec![entry],
    };
    entries.into_iter().map(of_one)
}

/// Sorts them; equals stay as they were.
pub fn sort(groups: &mut [Group], by: Sort) {
    match by {
        Sort::Size => groups.sort_by_key(|group| std::cmp::Reverse(group.original_bytes())),
        Sort::Name => groups.sort_by_cached_key(|group| parts(&group.first().name)),
        Sort::Ratio => groups.sort_by(|a, b| b.ratio().total_cmp(&a.ratio())),
    }
}

impl<'a> Group<'a> {
    pub fn entries(&self) -> &[Entry<'a>] {
        &self.entries
    }

    fn tensors(&self) -> impl Iterator<Item = &'a TensorReport> {
        self.entries.iter().map(|entry| entry.tensor)
    }

    fn first(&self) -> &'a TensorReport {
        self.entries[0].tensor
    }

    /// As in the file, with the numbers that there are in braces: `layers.{0..31}.weight`.
    pub fn name(&self) -> String {
        let all: Vec<_> = self.tensors().map(|tensor| parts(&tensor.name)).collect();
        let of_part = |(index, part): (usize, &Part)| match part {
            Part::Text(text) => text.to_string(),
            Part::Number(..) => numbers(all.iter().map(|parts| parts[index])),
        };
        all[0].iter().enumerate().map(of_part).collect()
    }

    pub fn dtype(&self) -> &'a str {
        &self.first().dtype
    }

    /// The shape, with a range for each dimension that differs: `320..1280x320x3x3`.
    pub fn shape(&self) -> String {
        let first = &self.first().shape;
        if self
            .tensors()
            .any(|tensor| tensor.shape.len() != first.len())
        {
            return "various".into();
        }
        let of_dimension = |index: usize| {
            let sizes = || self.tensors().map(|tensor| tensor.shape[index]);
            match (sizes().min(), sizes().max()) {
                (Some(least), Some(most)) if least < most => format!("{least}..{most}"),
                _ => first[index].to_string(),
            }
        };
        let dimensions: Vec<_> = (0..first.len()).map(of_dimension).collect();
        dimensions.join("x")
    }

    /// The experts that each holds: `128 of 1536 rows`, and whether kernels cannot take them as they are.
    pub fn experts(&self) -> String {
        let first = self.first().stack;
        if self.tensors().any(|tensor| tensor.stack != first) {
            return "various".into();
        }
        match first {
            Some(stack) => {
                let unaligned = if stack.is_aligned {
                    ""
                } else {
                    ", not aligned"
                };
                format!("{} of {} rows{unaligned}", stack.experts, stack.rows)
            }
            None => String::new(),
        }
    }

    pub fn original_bytes(&self) -> u64 {
        self.tensors().map(|tensor| tensor.original_bytes).sum()
    }

    pub fn stored_bytes(&self) -> u64 {
        self.tensors().map(|tensor| tensor.stored_bytes).sum()
    }

    /// Stored bytes for each original byte; one for no bytes.
    pub fn ratio(&self) -> f64 {
        match self.original_bytes() {
            0 => 1.0,
            bytes => self.stored_bytes() as f64 / bytes as f64,
        }
    }

    fn elements(&self) -> u64 {
        self.tensors().map(TensorReport::elements).sum()
    }

    /// Stored bits for each element, if there are any.
    pub fn bits_per_weight(&self) -> Option<f64> {
        let elements = self.elements();
        (elements > 0).then(|| 8.0 * self.stored_bytes() as f64 / elements as f64)
    }

    /// Of matrices, whose exponents were counted.
    pub fn exponents(&self) -> Option<Exponents> {
        if self.first().storage != Storage::Matrix || self.elements() == 0 {
            return None;
        }
        let (mut outliers, mut bits) = (0, 0.0);
        for tensor in self.tensors() {
            outliers += tensor.exponents.as_ref()?.window().outliers;
            bits += tensor.entropy_bits_per_weight().unwrap_or(0.0) * tensor.elements() as f64;
        }
        Some(Exponents {
            entropy_bits_per_weight: bits / self.elements() as f64,
            coverage: 1.0 - outliers as f64 / self.elements() as f64,
            outliers,
        })
    }
}

/// What is known of the exponents of a group, each tensor with a window of its own.
pub struct Exponents {
    pub entropy_bits_per_weight: f64,
    /// Share of the weights in the windows.
    pub coverage: f64,
    pub outliers: u64,
}

/// The numbers that are in one place of names: the one there is, or in braces a range, a few, or how many of a range.
fn numbers<'a>(parts: impl Iterator<Item = Part<'a>>) -> String {
    let numbers = parts.filter_map(|part| match part {
        Part::Number(number, text) => Some((number, text)),
        Part::Text(_) => None,
    });
    let numbers: BTreeMap<u64, &str> = numbers.collect();
    let (Some((&least, first)), Some((&most, last))) =
        (numbers.first_key_value(), numbers.last_key_value())
    else {
        return String::new();
    };
    let count = numbers.len() as u64;
    let mut pairs = numbers.keys().zip(numbers.keys().skip(1));
    let step = (most - least) / (count - 1).max(1);
    let is_even = pairs.all(|(a, b)| b - a == step);
    match count {
        1 => first.to_string(),
        _ if is_even && step == 1 => format!("{{{first}..{last}}}"),
        ..=3 => format!("{{{}}}", Vec::from_iter(numbers.into_values()).join(",")),
        _ if is_even => format!("{{{first}..{last} by {step}}}"),
        _ => format!("{{{count} of {first}..{last}}}"),
    }
}

#[cfg(test)]
mod tests {
    use zipserv::checkpoint::{self, Options};

    use super::*;

    /// What is found in a file of zeros with these tensors, each `NAME DTYPE SHAPE`.
    fn tensors(lines: &[&str]) -> Report {
        let (mut entries, mut end) = (Vec::new(), 0);
        for line in lines {
            let [name, dtype, shape] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let shape: Vec<u64> = shape.split('x').map(|n| n.parse().unwrap()).collect();
            let bytes = match dtype {
                "F32" => 4,
                "BF16" => 2,
                _ => 1,
            };
            let start = end;
            end += bytes * shape.iter().product::<u64>();
            entries.push(format!(
                r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
            ));
        }
        let json = format!("{{{}}}", entries.join(","));
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json.bytes());
        file.resize(file.len() + end as usize, 0);
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&path, file).unwrap();
        checkpoint::inspect(&path, &Options::default()).unwrap()
    }

    /// Name, count and shape of each.
    fn found(report: &Report) -> Vec<(String, usize, String)> {
        let groups = group(entries(report, None));
        let of_group = |group: &Group| (group.name(), group.entries().len(), group.shape());
        groups.iter().map(of_group).collect()
    }

    fn names(lines: &[&str]) -> Vec<String> {
        found(&tensors(lines))
            .into_iter()
            .map(|(name, ..)| name)
            .collect()
    }

    #[test]
    fn layers_are_one_row_and_others_are_their_own() {
        let report = tensors(&[
            "embed.weight BF16 100x64",
            "layers.0.up.weight BF16 64x64",
            "layers.0.norm.weight BF16 64",
            "layers.1.up.weight BF16 64x64",
            "layers.1.norm.weight F32 64",
            "layers.2.up.weight BF16 64x64",
            "norm.weight BF16 64",
        ]);
        let text = |name: &str, count, shape: &str| (name.into(), count, shape.into());
        assert_eq!(
            found(&report),
            [
                text("embed.weight", 1, "100x64"),
                text("layers.{0..2}.up.weight", 3, "64x64"),
                text("layers.0.norm.weight", 1, "64"),
                text("layers.1.norm.weight", 1, "64"),
                text("norm.weight", 1, "64"),
            ]
        );
        let groups = group(entries(&report, None));
        assert_eq!(groups[1].original_bytes(), 3 * 64 * 64 * 2);
        let one = report.tensors().nth(1).unwrap();
        assert_eq!(groups[1].stored_bytes(), 3 * one.stored_bytes);
        assert_eq!(groups[1].bits_per_weight(), one.bits_per_weight());
        let exponents = groups[1].exponents().unwrap();
        assert_eq!((exponents.outliers, exponents.coverage), (0, 1.0));
        assert_eq!(exponents.entropy_bits_per_weight, 8.0);
        assert!(groups[2].exponents().is_none());
    }

    #[test]
    fn numbers_are_words_of_their_own() {
        // Two numbers at once, and one that is the same in all.
        let experts: Vec<_> = (0..6)
            .map(|n| {
                format!(
                    "model.layers.{}.experts.{}.w1.0.weight BF16 8x8",
                    n / 2,
                    n % 2
                )
            })
            .collect();
        let experts: Vec<_> = experts.iter().map(String::as_str).collect();
        assert_eq!(
            names(&experts),
            ["model.layers.{0..2}.experts.{0..1}.w1.0.weight"]
        );
        for (pair, expected) in [
            (["w1 U8 1", "w2 U8 1"], vec!["w1", "w2"]),
            (
                ["down_blocks_0 U8 1", "down_blocks_1 U8 1"],
                vec!["down_blocks_{0..1}"],
            ),
            (["0 U8 1", "1 U8 1"], vec!["{0..1}"]),
            (["a.07 U8 1", "a.08 U8 1"], vec!["a.{07..08}"]),
            (["a.1. U8 1", "a.1 U8 1"], vec!["a.1.", "a.1"]),
            (["a. U8 1", ".a U8 1"], vec!["a.", ".a"]),
            // More than 64 bits is a word.
            (
                ["a.99999999999999999999 U8 1", "a.99999999999999999998 U8 1"],
                vec!["a.99999999999999999999", "a.99999999999999999998"],
            ),
            (
                ["a.18446744073709551615 U8 1", "a.0 U8 1"],
                vec!["a.{0,18446744073709551615}"],
            ),
        ] {
            assert_eq!(names(&pair), expected);
        }
    }

    #[test]
    fn numbers_with_gaps_are_told() {
        for (numbers, expected) in [
            (&[4][..], "a.4"),
            (&[4, 6], "a.{4,6}"),
            (&[7, 4, 6], "a.{4,6,7}"),
            (&[3, 7, 11, 15], "a.{3..15 by 4}"),
            (&[0, 1, 2, 4, 5, 6], "a.{6 of 0..6}"),
        ] {
            let lines: Vec<_> = numbers.iter().map(|n| format!("a.{n} U8 1")).collect();
            let lines: Vec<_> = lines.iter().map(String::as_str).collect();
            assert_eq!(names(&lines), [expected]);
        }
    }

    #[test]
    fn experts_are_counted() {
        let report = [
            "a.0 BF16 4x64x128",
            "a.1 BF16 4x64x128",
            "b.0 BF16 4x60x128",
            "b.1 BF16 4x64x128",
            "c BF16 2x3x40x128",
            "d BF16 64x128",
        ];
        let report = tensors(&report);
        let groups = group(entries(&report, None));
        let experts: Vec<_> = groups.iter().map(Group::experts).collect();
        let expected = ["4 of 64 rows", "various", "6 of 40 rows, not aligned", ""];
        assert_eq!(experts, expected);
    }

    #[test]
    fn shapes_that_differ_are_ranges() {
        let shape = |lines: &[&str]| found(&tensors(lines)).remove(0).2;
        assert_eq!(
            shape(&["a.0 U8 320x640x3", "a.1 U8 1280x640x3"]),
            "320..1280x640x3"
        );
        assert_eq!(shape(&["a.0 U8 320", "a.1 U8 1280x640"]), "various");
    }

    #[test]
    fn sorted_and_filtered() {
        let report = tensors(&["b BF16 64x64", "a.10 U8 1", "a.9 F32 3000", "a.9.x I8 2"]);
        let sorted = |by| {
            let mut groups: Vec<_> = single(entries(&report, None)).collect();
            sort(&mut groups, by);
            groups.iter().map(Group::name).collect::<Vec<_>>()
        };
        assert_eq!(sorted(Sort::Size), ["a.9", "b", "a.9.x", "a.10"]);
        assert_eq!(sorted(Sort::Name), ["a.9", "a.9.x", "a.10", "b"]);
        let by_ratio = sorted(Sort::Ratio);
        let at = |name| by_ratio.iter().position(|other| other == name);
        assert!(at("a.9.x") < at("b"), "{by_ratio:?}");
        assert_eq!(at("a.10"), Some(0));
        let matching = |glob: &str| {
            let glob = globset::Glob::new(glob).unwrap().compile_matcher();
            let entries = entries(&report, Some(&glob));
            entries
                .iter()
                .map(|entry| &*entry.tensor.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(matching("a.*"), ["a.10", "a.9", "a.9.x"]);
        assert_eq!(matching("a.9"), ["a.9"]);
        assert!(matching("c*").is_empty());
    }
}
