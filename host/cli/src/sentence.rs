//! Errors in a sentence.

use std::{error::Error, io, path::Path};

use zipserv::checkpoint::{self, ErrorKind, shown};

use super::stdio;

/// An error and its causes in one line: "no such file: x".
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref() {
        Some(zipserv_engine::Error::Checkpoint(error)) => return sentence(error),
        Some(zipserv_engine::Error::Io { path, source }) => return of_file(path, source),
        _ => {}
    }
    let mut text = if let Some(error) = error.downcast_ref::<checkpoint::Error>() {
        if let ErrorKind::Io(cause) = error.kind() {
            return of_file(error.path(), cause);
        }
        format!("{}: {}", stdio::name(error.path()), shown(error.kind()))
    } else if let Some(error) = error.downcast_ref::<io::Error>() {
        of_io(error)
    } else {
        shown(error).to_string()
    };
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {}", shown(error));
        cause = error.source();
    }
    text
}

/// What the operating system refused to do with a file.
pub fn of_file(path: &Path, error: &io::Error) -> String {
    let name = stdio::name(path);
    match error.kind() {
        io::ErrorKind::NotFound => match path.parent() {
            Some(parent) if parent != "" && !parent.exists() => {
                format!("no such folder: {}", stdio::name(parent))
            }
            _ => format!("no such file: {name}"),
        },
        io::ErrorKind::PermissionDenied => format!("permission denied: {name}"),
        _ => format!("{name}: {}", of_io(error)),
    }
}

/// As the operating system says it, without a number and in the middle of a sentence.
fn of_io(error: &io::Error) -> String {
    let text = shown(error).to_string();
    let Some(code) = error.raw_os_error() else {
        return text;
    };
    let text = text.trim_end_matches(&format!(" (os error {code})"));
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(error: impl Into<Box<dyn Error>>) -> String {
        sentence(&*error.into())
    }

    #[test]
    fn errors_are_sentences() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let open = |name: &str| text(checkpoint::open(at(name)).unwrap_err());
        let shown = |name: &str| at(name).display().to_string();
        assert_eq!(open("x"), format!("no such file: {}", shown("x")));
        assert_eq!(open("no/x"), format!("no such folder: {}", shown("no")));
        std::fs::write(at("odd"), b"\x02\0\0\0\0\0\0\0{]").unwrap();
        let odd = open("odd");
        let start = format!(
            "{}: the header is not that of a safetensors file: ",
            shown("odd")
        );
        assert!(odd.starts_with(&start) && !odd.contains('\n'), "{odd}");
        let full = io::Error::from_raw_os_error(28);
        assert_eq!(
            of_file(Path::new("a\n"), &full),
            r"a\n: no space left on device"
        );
        let denied = io::Error::from_raw_os_error(13);
        assert_eq!(of_file(Path::new("a"), &denied), "permission denied: a");
        assert_eq!(text(full), "no space left on device");
        assert_eq!(text("some words"), "some words");
        let tokenizer = zipserv_engine::Tokenizer::open(at("no")).err().unwrap();
        let missing = format!("no such folder: {}", shown("no"));
        assert_eq!(text(tokenizer), missing);
        let checkpoint = checkpoint::open(at("x")).unwrap_err();
        let missing = format!("no such file: {}", shown("x"));
        assert_eq!(text(zipserv_engine::Error::from(checkpoint)), missing);
    }
}
