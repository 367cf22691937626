//! Makes the hostile files of this folder, the same on every run.
//!
//! Each is a small good file with one thing wrong. `cargo test --test hostile -- --ignored` writes
//! them anew; the other tests see that they are still what this code makes.

use crate::support::file;
use zipserv::{Matrix, encode};

/// The weights of the one matrix in the good file, from the worked example of `docs/FORMAT.md`.
const WEIGHTS: [u16; 20] = [
    0x3c7e, 0xbca7, 0x3be9, 0x3cf7, 0xba6c, 0x3c39, 0x0000, 0xbcd2, 0x3c5c, 0x3fc0, 0xbbc8, 0x3c9b,
    0x3d29, 0xbb58, 0x3c89, 0xbcf4, 0x3d55, 0x3af9, 0xbc27, 0x3cc5,
];
const ORIGINAL_JSON: &str = r#"{"w":{"dtype":"BF16","shape":[2,10],"data_offsets":[0,40]},"b":{"dtype":"F32","shape":[2],"data_offsets":[40,48]}}"#;
/// Sections of the compressed matrix.
const OFFSETS_AT: usize = 128 + 2816;
const PATCHES_AT: usize = OFFSETS_AT + 16;

/// The original of all compressed files here.
pub fn original() -> Vec<u8> {
    file(ORIGINAL_JSON, &data())
}

fn data() -> Vec<u8> {
    let mut data: Vec<u8> = WEIGHTS.iter().flat_map(|w| w.to_le_bytes()).collect();
    data.extend_from_slice(b"eight by");
    data
}

fn blob() -> Vec<u8> {
    let data = data();
    let matrix = Matrix::from_le_bytes(2, 10, &data[..40]).unwrap();
    encode(&matrix).unwrap().as_bytes().to_vec()
}

/// As many rows, the first of which are those of the good file.
fn blob_of_rows(rows: usize) -> Vec<u8> {
    let mut data = data()[..40].to_vec();
    data.resize(20 * rows, 0x3C);
    let matrix = Matrix::from_le_bytes(rows, 10, &data).unwrap();
    encode(&matrix).unwrap().as_bytes().to_vec()
}

/// A compressed file, of parts that may be changed one by one.
struct Container {
    version: &'static str,
    suffix: &'static str,
    header: String,
    crc: String,
    blob: Vec<u8>,
    /// What stands in front of the closing brace.
    more: String,
    /// Data of the tensors in `more`.
    rest: Vec<u8>,
}

impl Container {
    fn good() -> Self {
        Self {
            version: "1",
            suffix: ".zipserv",
            header: ORIGINAL_JSON.into(),
            crc: format!("{:08x}", crc32fast::hash(&original())),
            blob: blob(),
            more: r#","b":{"dtype":"F32","shape":[2],"data_offsets":[BLOB,END]}"#.into(),
            rest: b"eight by".to_vec(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let (version, suffix, crc) = (self.version, self.suffix, &self.crc);
        let header = serde_json::to_string(&self.header).unwrap();
        let len = self.blob.len();
        let more = self.more.replace("BLOB", &len.to_string());
        let more = more.replace("END", &(len + self.rest.len()).to_string());
        let json = format!(
            r#"{{"__metadata__":{{"zipserv.version":"{version}","zipserv.suffix":"{suffix}","zipserv.header":{header},"zipserv.crc32":"{crc}"}},"w.zipserv":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}{more}}}"#
        );
        file(&json, &[&self.blob[..], &self.rest].concat())
    }
}

/// The compressed file before anything is changed.
pub fn good() -> Vec<u8> {
    Container::good().bytes()
}

/// A compressed file with one thing changed.
fn container(change: impl Fn(&mut Container)) -> Vec<u8> {
    let mut container = Container::good();
    change(&mut container);
    container.bytes()
}

/// A compressed file whose matrix was changed by someone who knows how to make checksums.
fn forged(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    container(|c| {
        change(&mut c.blob);
        let payload = crc32fast::hash(&c.blob[128..]);
        c.blob[40..44].copy_from_slice(&payload.to_le_bytes());
        let header = crc32fast::hash(&c.blob[..44]);
        c.blob[44..48].copy_from_slice(&header.to_le_bytes());
    })
}

/// The same weights as byte planes of 20 bytes each, as they are: header, table, planes, padding.
fn planes() -> Vec<u8> {
    let data = data();
    let plane = |byte: usize| data[..40].iter().skip(byte).step_by(2);
    planes_of(&[
        (0, plane(0).copied().collect()),
        (0, plane(1).copied().collect()),
    ])
}

/// One chunk of 20 elements of two bytes, of coders and stored bytes, signed.
fn planes_of(stored: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut blob = b"ZIPSERV\0\x01\0\x04\0\x02\0\0\0".to_vec();
    blob.extend_from_slice(&40u64.to_le_bytes());
    blob.extend_from_slice(&20u32.to_le_bytes());
    blob.extend_from_slice(&[0; 4]);
    blob.extend_from_slice(&crc32fast::hash(&data()[..40]).to_le_bytes());
    for (coder, bytes) in stored {
        blob.extend_from_slice(&(u32::from(*coder) << 24 | bytes.len() as u32).to_le_bytes());
    }
    for (_, bytes) in stored {
        blob.extend_from_slice(bytes);
    }
    blob.resize(blob.len().next_multiple_of(16), 0);
    sign_planes(&mut blob);
    blob
}

/// One chunk of two planes has a table of 12 bytes.
fn sign_planes(blob: &mut [u8]) {
    let crc = crc32fast::hash(&[&blob[..28], &blob[32..44]].concat());
    put(blob, 28, &crc.to_le_bytes());
}

/// A frame of zstd with one block: `len` times a byte.
fn frame(len: u32) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&(len << 3 | 0b011).to_le_bytes()[..3]);
    frame.push(0x3c);
    frame
}

/// A compressed file with byte planes.
fn with_planes(blob: Vec<u8>) -> Vec<u8> {
    container(|c| {
        c.version = "2";
        c.blob.clone_from(&blob);
    })
}

/// The same, changed by someone who knows how to make checksums.
fn forged_planes(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut blob = planes();
    change(&mut blob);
    sign_planes(&mut blob);
    with_planes(blob)
}

/// A file with byte planes before anything is changed.
pub fn good_planes() -> Vec<u8> {
    with_planes(planes())
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// One entry of a header.
fn entry(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

/// A file that is not compressed, with a header of these entries and 16 bytes of data.
fn plain(entries: &[String]) -> Vec<u8> {
    file(&format!("{{{}}}", entries.join(",")), &[7; 16])
}

/// The names and bytes of all files.
pub fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let good = good();
    let a = |offsets: &str| entry("a", "U8", "[8]", offsets);
    let b = |offsets: &str| entry("b", "U8", "[8]", offsets);
    let max = u64::MAX;
    let mut not_utf8 = good.clone();
    not_utf8[20] = 0xff;
    vec![
        // The file as a whole.
        ("empty", vec![]),
        ("truncated_length", good[..7].to_vec()),
        ("truncated_header", good[..100].to_vec()),
        ("truncated_data", good[..good.len() - 9].to_vec()),
        ("trailing_data", [&good[..], b"!"].concat()),
        (
            "header_length_of_100_mb",
            [&100_000_000u64.to_le_bytes()[..], &good[8..]].concat(),
        ),
        (
            "header_length_beyond_all",
            [&[0xff; 8][..], &good[8..]].concat(),
        ),
        ("header_length_zero", [&[0; 8][..], &good[8..]].concat()),
        ("header_not_utf8", not_utf8),
        // The JSON of the header.
        ("json_cut_off", file(r#"{"a":{"dtype":"U8","#, b"")),
        ("json_is_a_list", file("[]", b"")),
        (
            "json_deep",
            file(&format!(r#"{{"a":{}"#, "[".repeat(50_000)), b""),
        ),
        (
            "json_deep_in_an_unknown_field",
            file(&format!(r#"{{"a":{{"x":{}"#, "[".repeat(50_000)), b""),
        ),
        (
            "json_huge_number",
            plain(&[entry(
                "a",
                "U8",
                &format!("[{}]", "9".repeat(50_000)),
                "[0,16]",
            )]),
        ),
        (
            "json_huge_exponent",
            plain(&[entry("a", "U8", "[1e999999999]", "[0,16]")]),
        ),
        (
            "json_negative",
            plain(&[entry("a", "U8", "[-16]", "[0,16]")]),
        ),
        (
            "json_fraction",
            plain(&[entry("a", "U8", "[16.0]", "[0,16]")]),
        ),
        (
            "json_three_offsets",
            plain(&[entry("a", "U8", "[16]", "[0,16,16]")]),
        ),
        (
            "json_no_shape",
            file(r#"{"a":{"dtype":"U8","data_offsets":[0,0]}}"#, b""),
        ),
        (
            "json_metadata_is_a_number",
            file(r#"{"__metadata__":{"a":1}}"#, b""),
        ),
        (
            "json_metadata_twice",
            file(r#"{"__metadata__":{},"__metadata__":{}}"#, b""),
        ),
        // The tensors in it.
        ("duplicate_tensor", plain(&[a("[0,8]"), a("[8,16]")])),
        (
            "duplicate_escaped",
            plain(&[a("[0,8]"), entry("\\u0061", "U8", "[8]", "[8,16]")]),
        ),
        ("overlap", plain(&[a("[0,8]"), b("[4,12]")])),
        ("same_place", plain(&[a("[0,8]"), b("[0,8]")])),
        (
            "hole",
            plain(&[a("[0,8]"), entry("b", "U8", "[7]", "[9,16]")]),
        ),
        ("hole_in_front", plain(&[a("[8,16]")])),
        ("offsets_reversed", plain(&[a("[8,0]")])),
        (
            "offsets_beyond_all",
            plain(&[entry("a", "X", "[1]", &format!("[0,{max}]"))]),
        ),
        (
            "offset_of_65_bits",
            plain(&[entry("a", "U8", "[16]", "[0,18446744073709551616]")]),
        ),
        (
            "shape_overflows",
            plain(&[entry("a", "U8", "[4294967296,4294967296]", "[0,16]")]),
        ),
        (
            "shape_overflows_in_bits",
            plain(&[entry("a", "F32", "[576460752303423488]", "[0,16]")]),
        ),
        (
            "shape_overflows_before_zero",
            plain(&[entry("a", "U8", &format!("[{max},{max},0]"), "[0,0]")]),
        ),
        (
            "too_many_dimensions",
            plain(&[entry(
                "a",
                "U8",
                &format!("[{}1]", "1,".repeat(64)),
                "[0,1]",
            )]),
        ),
        ("wrong_size", plain(&[entry("a", "F32", "[5]", "[0,16]")])),
        // What zipserv adds to a header.
        ("container_version", container(|c| c.version = "4")),
        ("container_suffix", container(|c| c.suffix = ".other")),
        (
            "container_crc_missing",
            container(|c| c.crc = "\",\"x\":\"".into()),
        ),
        (
            "container_crc_not_a_number",
            container(|c| c.crc = "0x123456".into()),
        ),
        (
            "container_crc_wrong",
            container(|c| c.crc = "01234567".into()),
        ),
        ("container_header_empty", container(|c| c.header.clear())),
        (
            "container_header_overflows",
            container(|c| c.header = c.header.replace("[2,10]", "[4294967296,4294967296]")),
        ),
        (
            "container_header_overlap",
            container(|c| c.header = c.header.replace("[40,48]", "[32,40]")),
        ),
        (
            "container_header_other_shape",
            container(|c| c.header = c.header.replace("[2,10]", "[10,2]")),
        ),
        (
            "container_stack_of_other_rows",
            // Two experts of one row each: 2 rows, or 64 if they are aligned.
            container(|c| {
                c.version = "3";
                c.header = c.header.replace("[2,10]", "[2,1,10]");
                c.blob = blob_of_rows(33);
            }),
        ),
        (
            "container_stack_of_more_experts",
            container(|c| {
                c.version = "3";
                c.header = c.header.replace("[2,10]", "[2,1,10]");
                c.blob = blob_of_rows(96);
            }),
        ),
        (
            "container_stack_of_two_dimensions",
            container(|c| {
                c.version = "3";
                c.blob = blob_of_rows(32);
            }),
        ),
        (
            "container_stack_of_rows_without_end",
            // Aligned, there are more rows than 64 bits count.
            container(|c| {
                c.version = "3";
                c.header = ORIGINAL_JSON
                    .replace("[2,10]", "[576460752303423488,1,1]")
                    .replace("[0,40]", "[0,1152921504606846976]")
                    .replace("[40,48]", "[1152921504606846976,1152921504606846984]");
            }),
        ),
        (
            "container_header_vector",
            container(|c| c.header = c.header.replace("[2,10]", "[20]")),
        ),
        (
            "container_header_petabytes",
            container(|c| {
                // What it claims to restore to would fill any disk.
                c.header = ORIGINAL_JSON
                    .replace("[2,10]", "[1073741824,536870912]")
                    .replace("[0,40]", "[0,1152921504606846976]")
                    .replace("[40,48]", "[1152921504606846976,1152921504606846984]");
            }),
        ),
        (
            "container_header_other_dtype",
            container(|c| c.header = c.header.replace("F32", "I32")),
        ),
        (
            "container_header_f16",
            container(|c| c.header = c.header.replace("BF16", "F16")),
        ),
        (
            "container_tensor_missing",
            container(|c| {
                c.more.clear();
                c.rest.clear();
            }),
        ),
        (
            "container_tensor_too_many",
            container(|c| {
                c.header = c.header.replace(
                    r#","b":{"dtype":"F32","shape":[2],"data_offsets":[40,48]}"#,
                    "",
                )
            }),
        ),
        (
            "container_tensor_twice",
            container(|c| {
                c.more = r#","b":{"dtype":"F32","shape":[2],"data_offsets":[BLOB,END]},"w":{"dtype":"BF16","shape":[2,0],"data_offsets":[BLOB,BLOB]}"#.into();
            }),
        ),
        ("container_raw_damaged", container(|c| c.rest[0] ^= 1)),
        // The compressed matrix.
        ("blob_empty", container(|c| c.blob.clear())),
        ("blob_short", container(|c| c.blob.truncate(2960))),
        ("blob_long", container(|c| c.blob.resize(2992, 0))),
        ("blob_magic", container(|c| c.blob[0] = b'z')),
        ("blob_version", forged(|blob| blob[8] = 2)),
        ("blob_layout", forged(|blob| blob[10] = 5)),
        ("blob_layout_2", forged(|blob| blob[10] = 2)),
        ("blob_layout_3", forged(|blob| blob[10] = 3)),
        ("blob_header_checksum", container(|c| c.blob[16] ^= 1)),
        ("blob_payload_checksum", container(|c| c.blob[200] ^= 1)),
        ("blob_base", forged(|blob| blob[12] = 249)),
        ("blob_base_not_allowed", forged(|blob| blob[12] = 241)),
        ("blob_reserved", forged(|blob| blob[100] = 1)),
        (
            "blob_rows_of_33_bits",
            forged(|blob| put(blob, 16, &(1u64 << 32).to_le_bytes())),
        ),
        (
            "blob_too_many_tiles",
            forged(|blob| {
                put(
                    blob,
                    16,
                    &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
                )
            }),
        ),
        (
            "blob_more_patches_than_bytes",
            forged(|blob| put(blob, 32, &i32::MAX.to_le_bytes())),
        ),
        (
            "blob_patches_of_32_bits",
            forged(|blob| put(blob, 32, &(1u32 << 31).to_le_bytes())),
        ),
        (
            "blob_other_shape",
            forged(|blob| {
                blob[16] = 10;
                blob[24] = 2;
            }),
        ),
        (
            "blob_nonzero_first_offset",
            forged(|blob| blob[OFFSETS_AT] = 1),
        ),
        ("blob_last_offset", forged(|blob| blob[OFFSETS_AT + 4] = 1)),
        ("blob_offsets_fall", container(two_tiles)),
        (
            "patches_out_of_order",
            forged(|blob| {
                let (first, second) = (
                    blob[PATCHES_AT..][..2].to_vec(),
                    blob[PATCHES_AT + 2..][..2].to_vec(),
                );
                put(blob, PATCHES_AT, &[second, first].concat());
            }),
        ),
        (
            "patch_twice",
            forged(|blob| blob.copy_within(PATCHES_AT..PATCHES_AT + 2, PATCHES_AT + 2)),
        ),
        (
            "patch_in_the_padding",
            forged(|blob| put(blob, PATCHES_AT + 2, &[0xff, 0xff])),
        ),
        (
            "patch_decodes_otherwise",
            forged(|blob| blob[PATCHES_AT + 1] ^= 8),
        ),
        // Byte planes.
        ("planes_cut_off", with_planes(planes()[..20].to_vec())),
        ("planes_short", with_planes(planes()[..80].to_vec())),
        (
            "planes_long",
            with_planes([&planes()[..], &[0; 16]].concat()),
        ),
        ("planes_padding", forged_planes(|blob| blob[90] = 1)),
        (
            "planes_header_checksum",
            with_planes({
                let mut blob = planes();
                blob[32] ^= 1;
                blob
            }),
        ),
        ("planes_version", forged_planes(|blob| blob[8] = 2)),
        ("planes_width", forged_planes(|blob| blob[12] = 3)),
        ("planes_rotated", forged_planes(|blob| blob[13] = 2)),
        ("planes_reserved", forged_planes(|blob| blob[15] = 1)),
        ("planes_odd_bytes", forged_planes(|blob| blob[16] = 39)),
        (
            "planes_petabytes",
            forged_planes(|blob| put(blob, 16, &(1u64 << 60).to_le_bytes())),
        ),
        (
            "planes_more_chunks",
            forged_planes(|blob| put(blob, 16, &1000u64.to_le_bytes())),
        ),
        (
            "planes_chunk_of_nothing",
            forged_planes(|blob| blob[24] = 0),
        ),
        (
            "planes_chunk_too_large",
            forged_planes(|blob| put(blob, 24, &(2097153u32).to_le_bytes())),
        ),
        (
            "planes_other_bytes",
            container(|c| {
                c.version = "2";
                c.blob = planes();
                c.header = ORIGINAL_JSON
                    .replace("[2,10]", "[2,9]")
                    .replace("[0,40]", "[0,36]")
                    .replace("[40,48]", "[36,44]");
            }),
        ),
        ("planes_coder", forged_planes(|blob| blob[39] = 3)),
        ("planes_raw_short", forged_planes(|blob| blob[40] = 19)),
        ("planes_constant_long", forged_planes(|blob| blob[39] = 1)),
        ("planes_frame_long", forged_planes(|blob| blob[39] = 2)),
        (
            "planes_no_frame",
            with_planes(planes_of(&[(1, vec![0]), (2, vec![7; 13])])),
        ),
        (
            "planes_frame_of_too_much",
            with_planes(planes_of(&[(1, vec![0]), (2, frame(131072))])),
        ),
        (
            "planes_frame_of_too_little",
            with_planes(planes_of(&[(1, vec![0]), (2, frame(19))])),
        ),
        (
            "planes_decode_otherwise",
            with_planes(planes_of(&[(1, vec![0]), (2, frame(20))])),
        ),
        (
            "planes_damaged",
            with_planes({
                let mut blob = planes();
                blob[50] ^= 1;
                blob
            }),
        ),
    ]
}

/// A matrix of two tiles, the first of which has more patches than there are in all.
fn two_tiles(container: &mut Container) {
    let matrix = Matrix::from_le_bytes(2, 70, &[0x3c; 280]).unwrap();
    container.blob = encode(&matrix).unwrap().as_bytes().to_vec();
    let blob = &mut container.blob;
    let offsets_at = 128 + 2 * 2816;
    blob[offsets_at + 4] = 9;
    let payload = crc32fast::hash(&blob[128..]);
    blob[40..44].copy_from_slice(&payload.to_le_bytes());
    let header = crc32fast::hash(&blob[..44]);
    blob[44..48].copy_from_slice(&header.to_le_bytes());
    container.header = ORIGINAL_JSON
        .replace("[2,10]", "[2,70]")
        .replace("[0,40]", "[0,280]")
        .replace("[40,48]", "[280,288]");
}
