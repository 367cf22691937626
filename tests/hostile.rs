//! Hostile files are refused by their own error, fast, in little memory, and leave nothing behind.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs::{self, File},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tempfile::tempdir;
use zipserv::checkpoint::{Error, compress, convert, decompress, inspect, open, verify};

#[path = "hostile/expected.rs"]
mod expected;
#[path = "hostile/generate.rs"]
mod generate;
mod support;
use support::*;

/// Counts the bytes in use, and the most there have been.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let now = NOW.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: all calls go to the system's allocator as they are. Its `realloc` and `alloc_zeroed`
// come from the default methods, which call these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Only one test at a time may look at the counters.
static COUNTERS: std::sync::Mutex<()> = std::sync::Mutex::new(());

const SLACK: usize = 64 << 20;
const LIMIT: Duration = Duration::from_secs(1);

fn corpus_file(name: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hostile");
    tests.join(format!("{name}.safetensors"))
}

/// Runs a job on an input of `bytes` bytes that it must refuse within bounds.
fn refused<T>(bytes: u64, job: impl FnOnce() -> Result<T, Error>) -> String {
    let (start, before) = (Instant::now(), NOW.load(Relaxed));
    PEAK.store(before, Relaxed);
    let result = job();
    let took = start.elapsed();
    let peak = PEAK.load(Relaxed).saturating_sub(before);
    assert!(took < LIMIT, "took {took:?}");
    assert!(peak <= bytes as usize + SLACK, "{peak} bytes for {bytes}");
    match result {
        Ok(_) => "accepted".into(),
        Err(error) => text(&error),
    }
}

/// What the jobs say of an input; that of compression comes last.
fn all_jobs(input: &Path, bytes: u64, folder: &Path) -> [String; 6] {
    let original = folder.join("original.safetensors");
    fs::write(&original, generate::original()).unwrap();
    let before = names(folder);
    let mut different = false;
    let mut found = [
        refused(bytes, || {
            decompress(input, folder.join("output"), &options())
        }),
        refused(bytes, || {
            let verdict = verify(input, &original, &options())?;
            different = verdict.difference.is_some();
            Ok(())
        }),
        refused(bytes, || inspect(input, &options())),
        refused(bytes, || {
            let checkpoint = open(input)?;
            let mut tensors = checkpoint.tensors();
            tensors.try_for_each(|tensor| tensor.decoded().map(drop))
        }),
        refused(bytes, || convert(input, folder.join("output"), &options())),
        refused(bytes, || compress(input, folder.join("output"), &options())),
    ];
    assert_eq!(names(folder), before, "something is left behind");
    // Verification may find a difference before it finds what is wrong: that is no less true.
    if different {
        found[1] = found[0].clone();
    }
    // Reading tensor by tensor does not restore the file whose checksum there is.
    if found[3] == "accepted" && found[0].starts_with("checksum of the restored file") {
        found[3] = found[0].clone();
    }
    found
}

#[test]
fn every_file_is_refused_by_its_error() {
    let _alone = COUNTERS.lock();
    let files = generate::corpus();
    let mut wrong = String::new();
    for (name, bytes) in &files {
        let folder = tempdir().unwrap();
        let found = all_jobs(&corpus_file(name), bytes.len() as u64, folder.path());
        let expected = expected::ERRORS.iter().find(|(file, _)| file == name);
        let expected = expected.map_or("", |(_, text)| text);
        // Compression has its own word on files that are compressed.
        let fits = |text: &String| text == expected;
        let already = found[5].starts_with("already compressed by zipserv; ");
        if !found[..5].iter().all(fits) || !(fits(&found[5]) || already) {
            wrong += &format!(
                "    (\n        {name:?},\n        {:?},\n    ),\n",
                found[0]
            );
            wrong += &format!("// {found:?}\n");
        }
    }
    assert!(wrong.is_empty(), "not as expected:\n{wrong}");
    assert_eq!(files.len(), expected::ERRORS.len());
}

/// What an error says in words, it says to programs too.
#[test]
fn tensors_and_offsets_need_no_parsing() {
    let mut seen = [0; 3];
    for (name, bytes) in generate::corpus() {
        let path = corpus_file(name);
        let folder = tempdir().unwrap();
        let error = decompress(&path, folder.path().join("output"), &options()).unwrap_err();
        assert_eq!(error.path(), path);
        let said = text(&error);
        let tensor = error.tensor().map(|tensor| format!("tensor `{tensor}`"));
        assert_eq!(tensor.is_some(), said.contains("tensor `"), "{said}");
        assert!(
            said.contains(tensor.as_deref().unwrap_or_default()),
            "{said}"
        );
        seen[0] += usize::from(tensor.is_some());

        let numbers = |after: &str| {
            let numbers = said.split(after).skip(1).map(|rest| {
                let end = rest.find(|c: char| !c.is_ascii_digit());
                rest[..end.unwrap_or(rest.len())].parse::<u64>().unwrap()
            });
            numbers.collect::<Vec<_>>()
        };
        if said.starts_with("the stored header") {
            // Of the original file, which is another one.
            assert_eq!(error.offset(), None, "{said}");
        } else if let Some(offset) = numbers("data offset ").first() {
            // From the end of the header; of two offsets, the start of the tensor's data.
            let starts = [numbers("start at "), numbers("` at "), vec![*offset]].concat();
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert_eq!(error.offset(), Some(8 + header + starts[0]), "{said}");
            seen[1] += 1;
        } else if said.contains("offset ") {
            // That of a tensor, and from there that of what is wrong with its matrix.
            assert_eq!(
                error.offset(),
                Some(numbers("at offset ").iter().sum()),
                "{said}"
            );
            seen[2] += 1;
        }
    }
    assert!(seen[0] > 30 && seen[1] > 4 && seen[2] > 15, "{seen:?}");
}

#[test]
fn the_corpus_is_what_the_generator_makes() {
    for (name, bytes) in generate::corpus() {
        let stored = fs::read(corpus_file(name)).expect(name);
        assert!(stored == bytes, "{name}");
    }
}

#[test]
#[ignore = "writes tests/hostile"]
fn write_the_corpus() {
    for (name, bytes) in generate::corpus() {
        fs::write(corpus_file(name), bytes).unwrap();
    }
}

/// Files too large for a repository.
#[test]
fn bombs_are_refused() {
    let _alone = COUNTERS.lock();
    let folder = tempdir().unwrap();
    let bomb = folder.path().join("bomb.safetensors");
    let check = |expected: &str| {
        let bytes = bomb.metadata().unwrap().len();
        for found in all_jobs(&bomb, bytes, folder.path()) {
            assert_eq!(found, expected);
        }
    };

    // Zeros as far as the file goes: it takes no room on the disk, but time to whoever reads it.
    let file_of_zeros = File::create(&bomb).unwrap();
    let length = 8u64 << 30;
    std::io::Write::write_all(&mut &file_of_zeros, &length.to_le_bytes()).unwrap();
    file_of_zeros.set_len(8 + length).unwrap();
    check("a header of 8589934592 bytes is longer than the limit of 100000000");

    let dims = 5_000_000;
    let json = format!(
        r#"{{"a":{{"dtype":"U8","shape":[{}0],"data_offsets":[0,0]}}}}"#,
        "0,".repeat(dims - 1)
    );
    fs::write(&bomb, file(&json, b"")).unwrap();
    check("tensor `a` has 5000000 dimensions; the limit is 64");

    let entry = |i| format!(r#""{i}":{{"dtype":"","shape":[],"data_offsets":[0,0]}}"#);
    let entries: Vec<_> = (0..700_000).map(entry).collect();
    let json = format!("{{{}}}", entries.join(","));
    fs::write(&bomb, file(&json, b"")).unwrap();
    check("more than 600000 tensors in the header");

    let entries: Vec<_> = (0..700_000).map(|i| format!(r#""{i}":"""#)).collect();
    let json = format!(r#"{{"__metadata__":{{{}}}}}"#, entries.join(","));
    fs::write(&bomb, file(&json, b"")).unwrap();
    check("more than 600000 entries of metadata in the header");
}

/// The safetensors package knows no limit but the header's, and people have files of so many.
#[test]
fn six_hundred_thousand_tensors_are_read() {
    let _alone = COUNTERS.lock();
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let count = 600_000;
    let entry = |i| format!(r#""{i}":{{"dtype":"BF16","shape":[0],"data_offsets":[0,0]}}"#);
    let entries: Vec<_> = (0..count).map(entry).collect();
    let original = file(&format!("{{{}}}", entries.join(",")), b"");
    drop(entries);
    fs::write(at("original"), &original).unwrap();
    let names = safetensors::SafeTensors::deserialize(&original).unwrap();
    assert_eq!(names.len(), count);
    drop(names);

    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    compress(at("original"), at("small"), &options()).unwrap();
    assert_eq!(open(at("small")).unwrap().tensors().count(), count);
    // Both headers, and a report of every tensor.
    let peak = PEAK.load(Relaxed) - before;
    assert!(peak < count << 10, "{peak} bytes");
}

/// Indexes that reach out of their folder, or name what is not there.
#[test]
fn indexes_do_not_reach_out_of_the_folder() {
    let folder = tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(folder.path().join("secret.safetensors"), b"secret").unwrap();
    fs::write(model.join("a.safetensors"), generate::good()).unwrap();
    let outside = |shard: &str| {
        format!(
            "the index places tensor `w` in `{shard}`, which is not a file name within the folder"
        )
    };
    let absolute = folder.path().join("secret.safetensors");
    let absolute = absolute.to_str().unwrap();
    for (shard, expected) in [
        ("../secret.safetensors", outside("../secret.safetensors")),
        (
            "x/../../secret.safetensors",
            outside("x/../../secret.safetensors"),
        ),
        (absolute, outside(absolute)),
        ("", outside("")),
        (
            "b.safetensors",
            "the index places tensor `w` in `b.safetensors`, which does not exist".into(),
        ),
    ] {
        let index = format!(r#"{{"weight_map":{{"w":{shard:?}}}}}"#);
        fs::write(model.join("model.safetensors.index.json"), index).unwrap();
        let output = folder.path().join("output");
        let errors = [
            compress(&model, &output, &options()).unwrap_err(),
            decompress(&model, &output, &options()).unwrap_err(),
            inspect(&model, &options()).unwrap_err(),
            open(&model).unwrap_err(),
            verify(&model, &model, &options()).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(text(&error), expected);
        }
        assert_eq!(names(folder.path()), ["model", "secret.safetensors"]);
    }
    let index = format!(r#"{{"weight_map":{}"#, "[".repeat(100_000));
    fs::write(model.join("model.safetensors.index.json"), index).unwrap();
    let error = inspect(&model, &options()).unwrap_err();
    assert!(text(&error).starts_with("not an index of shards: "));
}

/// The files that all others are made of are good: each is refused for the one thing changed.
#[test]
fn the_good_files_are_accepted() {
    for good in [generate::good(), generate::good_planes()] {
        let folder = tempdir().unwrap();
        let at = |name| folder.path().join(name);
        fs::write(at("good"), good).unwrap();
        decompress(at("good"), at("restored"), &options()).unwrap();
        assert!(fs::read(at("restored")).unwrap() == generate::original());
    }
}
