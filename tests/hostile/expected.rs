//! What each hostile file is refused with: by restoring, verifying and inspecting, and by
//! compressing if it does not pass for a compressed one.

pub const ERRORS: &[(&str, &str)] = &[
    ("empty", "0 bytes are too few for a safetensors file"),
    (
        "truncated_length",
        "7 bytes are too few for a safetensors file",
    ),
    (
        "truncated_header",
        "the header length at offset 0 is 374, but only 92 bytes follow: truncated, or not a safetensors file",
    ),
    (
        "truncated_data",
        "the data is truncated: tensors take 2984 bytes, but 2975 follow the header",
    ),
    (
        "trailing_data",
        "tensors take 2984 bytes, but 2985 follow the header",
    ),
    (
        "header_length_of_100_mb",
        "the header length at offset 0 is 100000000, but only 3358 bytes follow: truncated, or not a safetensors file",
    ),
    (
        "header_length_beyond_all",
        "the header length at offset 0 is 18446744073709551615, but only 3358 bytes follow: truncated, or not a safetensors file",
    ),
    (
        "header_length_zero",
        "the header is not that of a safetensors file: EOF while parsing a value at line 1 column 0",
    ),
    (
        "header_not_utf8",
        "the header is not UTF-8 at offset 20: invalid utf-8 sequence of 1 bytes from index 12",
    ),
    (
        "json_cut_off",
        "the header is not that of a safetensors file: EOF while parsing a value at line 1 column 19",
    ),
    (
        "json_is_a_list",
        "the header is not that of a safetensors file: invalid type: sequence, expected a map of tensors at line 1 column 0",
    ),
    (
        "json_deep",
        "the header is not that of a safetensors file: invalid type: sequence, expected a string at line 1 column 6",
    ),
    (
        "json_deep_in_an_unknown_field",
        "the header is not that of a safetensors file: EOF while parsing a list at line 1 column 50010",
    ),
    (
        "json_huge_number",
        "the header is not that of a safetensors file: number out of range at line 1 column 50028",
    ),
    (
        "json_huge_exponent",
        "the header is not that of a safetensors file: number out of range at line 1 column 39",
    ),
    (
        "json_negative",
        "the header is not that of a safetensors file: invalid value: integer `-16`, expected u64 at line 1 column 31",
    ),
    (
        "json_fraction",
        "the header is not that of a safetensors file: invalid type: floating point `16.0`, expected u64 at line 1 column 32",
    ),
    (
        "json_three_offsets",
        "the header is not that of a safetensors file: trailing characters at line 1 column 54",
    ),
    (
        "json_no_shape",
        "the header is not that of a safetensors file: missing field `shape` at line 1 column 40",
    ),
    (
        "json_metadata_is_a_number",
        "the header is not that of a safetensors file: invalid type: integer `1`, expected a string at line 1 column 22",
    ),
    (
        "json_metadata_twice",
        "the header is not that of a safetensors file: duplicate field `__metadata__` at line 1 column 37",
    ),
    ("duplicate_tensor", "tensor `a` occurs twice in the header"),
    ("duplicate_escaped", "tensor `a` occurs twice in the header"),
    (
        "overlap",
        "tensor `b` starts at data offset 4, inside the tensor before it, which ends at 8",
    ),
    (
        "same_place",
        "tensor `b` starts at data offset 0, inside the tensor before it, which ends at 8",
    ),
    (
        "hole",
        "nothing lies between data offset 8 and tensor `b` at 9",
    ),
    (
        "hole_in_front",
        "nothing lies between data offset 0 and tensor `a` at 8",
    ),
    (
        "offsets_reversed",
        "tensor `a` ends at data offset 0, before its start at 8",
    ),
    (
        "offsets_beyond_all",
        "the data is truncated: tensors take 18446744073709551615 bytes, but 0 follow the header",
    ),
    (
        "offset_of_65_bits",
        "the header is not that of a safetensors file: invalid type: floating point `1.8446744073709552e+19`, expected u64 at line 1 column 70",
    ),
    (
        "shape_overflows",
        "the shape [4294967296, 4294967296] of tensor `a` overflows",
    ),
    (
        "shape_overflows_in_bits",
        "the shape [576460752303423488] of tensor `a` overflows",
    ),
    (
        "shape_overflows_before_zero",
        "the shape [18446744073709551615, 18446744073709551615, 0] of tensor `a` overflows",
    ),
    (
        "too_many_dimensions",
        "tensor `a` has 65 dimensions; the limit is 64",
    ),
    (
        "wrong_size",
        "tensor `a` has 16 bytes, but F32 of shape [5] takes 20",
    ),
    (
        "container_version",
        "container version `4` is not supported; this build reads versions 1, 2, 3",
    ),
    (
        "container_suffix",
        "tensor `w` of the original file is missing",
    ),
    (
        "container_crc_missing",
        "metadata `zipserv.crc32` is missing or not what zipserv writes",
    ),
    (
        "container_crc_not_a_number",
        "metadata `zipserv.crc32` is missing or not what zipserv writes",
    ),
    (
        "container_crc_wrong",
        "checksum of the restored file is 64e27434, but 01234567 was stored: the data is damaged",
    ),
    (
        "container_header_empty",
        "the stored header of the original file is damaged: the header is not that of a safetensors file: EOF while parsing a value at line 1 column 0",
    ),
    (
        "container_header_overflows",
        "the stored header of the original file is damaged: the shape [4294967296, 4294967296] of tensor `w` overflows",
    ),
    (
        "container_header_overlap",
        "the stored header of the original file is damaged: tensor `b` starts at data offset 32, inside the tensor before it, which ends at 40",
    ),
    (
        "container_header_other_shape",
        "tensor `w` of shape [10, 2] is stored as a 2 x 10 matrix",
    ),
    (
        "container_stack_of_other_rows",
        "tensor `w` of shape [2, 1, 10] is stored as a 33 x 10 matrix",
    ),
    (
        "container_stack_of_more_experts",
        "tensor `w` of shape [2, 1, 10] is stored as a 96 x 10 matrix",
    ),
    (
        "container_stack_of_two_dimensions",
        "tensor `w` of shape [2, 10] is stored as a 32 x 10 matrix",
    ),
    (
        "container_stack_of_rows_without_end",
        "tensor `w` of shape [576460752303423488, 1, 1] is stored as a 2 x 10 matrix",
    ),
    (
        "container_header_vector",
        "tensor `w` differs in dtype, shape or size from the original header",
    ),
    (
        "container_header_petabytes",
        "tensor `w` of shape [1073741824, 536870912] is stored as a 2 x 10 matrix",
    ),
    (
        "container_header_other_dtype",
        "tensor `b` differs in dtype, shape or size from the original header",
    ),
    (
        "container_header_f16",
        "tensor `w` differs in dtype, shape or size from the original header",
    ),
    (
        "container_tensor_missing",
        "tensor `b` of the original file is missing",
    ),
    (
        "container_tensor_too_many",
        "tensor `b` does not belong to the original file",
    ),
    (
        "container_tensor_twice",
        "tensor `w` differs in dtype, shape or size from the original header",
    ),
    (
        "container_raw_damaged",
        "checksum of the restored file is a84874aa, but 64e27434 was stored: the data is damaged",
    ),
    (
        "blob_empty",
        "tensor `w` at offset 370: compressed matrix of 0 bytes, but 128 are needed",
    ),
    (
        "blob_short",
        "tensor `w` at offset 382: compressed matrix of 2960 bytes, but 2976 are needed",
    ),
    (
        "blob_long",
        "tensor `w` at offset 382: compressed matrix of 2992 bytes, but it ends after 2976",
    ),
    (
        "blob_magic",
        "tensor `w` at offset 382: not a zipserv matrix: wrong magic at offset 0",
    ),
    (
        "blob_version",
        "tensor `w` at offset 382: format version 2 at offset 8 is not supported; this build reads version 1",
    ),
    (
        "blob_layout",
        "tensor `w` at offset 382: layout 5 at offset 10 is not supported; this build reads layout 1",
    ),
    (
        "blob_layout_2",
        "tensor `w` at offset 382: layout 2 at offset 10, of a development version, is not supported; this build reads layout 1: compress the original again",
    ),
    (
        "blob_layout_3",
        "tensor `w` at offset 382: layout 3 at offset 10, of a development version, is not supported; this build reads layout 1: compress the original again",
    ),
    (
        "blob_header_checksum",
        "tensor `w` at offset 382: checksum of the header is eb986854, but ea2d9549 was stored: the data is damaged",
    ),
    (
        "blob_payload_checksum",
        "tensor `w` at offset 382: checksum of the payload is 95ced453, but 413250ef was stored: the data is damaged",
    ),
    (
        "blob_base",
        "tensor `w` at offset 382: header field `base` at offset 12 has the impossible value 249",
    ),
    (
        "blob_base_not_allowed",
        "tensor `w` at offset 382: header field `base` at offset 12 has the impossible value 241",
    ),
    (
        "blob_reserved",
        "tensor `w` at offset 382: header field `reserved` at offset 100 has the impossible value 1",
    ),
    (
        "blob_rows_of_33_bits",
        "tensor `w` at offset 382: header field `rows` at offset 16 has the impossible value 4294967296",
    ),
    (
        "blob_too_many_tiles",
        "tensor `w` at offset 382: a 4294967295 x 4294967295 matrix is too large for the format",
    ),
    (
        "blob_more_patches_than_bytes",
        "tensor `w` at offset 382: compressed matrix of 2976 bytes, but 4294970256 are needed",
    ),
    (
        "blob_patches_of_32_bits",
        "tensor `w` at offset 382: header field `patches` at offset 32 has the impossible value 2147483648",
    ),
    (
        "blob_other_shape",
        "tensor `w` of shape [2, 10] is stored as a 10 x 2 matrix",
    ),
    (
        "blob_nonzero_first_offset",
        "tensor `w` at offset 382: patch offset of tile 0 at offset 2944 is out of order",
    ),
    (
        "blob_last_offset",
        "tensor `w` at offset 382: patch offset of tile 1 at offset 2948 is out of order",
    ),
    (
        "blob_offsets_fall",
        "tensor `w` at offset 385: patch offset of tile 1 at offset 5764 is out of order",
    ),
    (
        "patches_out_of_order",
        "tensor `w` at offset 382: patch 1 of tile 0 is out of range or out of order",
    ),
    (
        "patch_twice",
        "tensor `w` at offset 382: patch 1 of tile 0 is out of range or out of order",
    ),
    (
        "patch_in_the_padding",
        "tensor `w` at offset 382: patch 1 of tile 0 is out of range or out of order",
    ),
    (
        "patch_decodes_otherwise",
        "checksum of the restored file is bbc97cde, but 64e27434 was stored: the data is damaged",
    ),
    (
        "planes_cut_off",
        "tensor `w` at offset 374: byte planes of 20 bytes, but 32 are needed",
    ),
    (
        "planes_short",
        "tensor `w` at offset 374: byte planes of 80 bytes, but 96 are needed",
    ),
    (
        "planes_long",
        "tensor `w` at offset 378: byte planes of 112 bytes, but 96 are needed",
    ),
    (
        "planes_padding",
        "tensor `w` at offset 375: header field `padding` at offset 90 has the impossible value 1",
    ),
    (
        "planes_header_checksum",
        "tensor `w` at offset 375: checksum of the header is f671b382, but 6dd4ffed was stored: the data is damaged",
    ),
    (
        "planes_version",
        "tensor `w` at offset 375: format version 2 at offset 8 is not supported; this build reads version 1",
    ),
    (
        "planes_width",
        "tensor `w` at offset 375: header field `width` at offset 12 has the impossible value 3",
    ),
    (
        "planes_rotated",
        "tensor `w` at offset 375: header field `rotated` at offset 13 has the impossible value 2",
    ),
    (
        "planes_reserved",
        "tensor `w` at offset 375: header field `reserved` at offset 14 has the impossible value 256",
    ),
    (
        "planes_odd_bytes",
        "tensor `w` at offset 375: header field `bytes` at offset 16 has the impossible value 39",
    ),
    (
        "planes_petabytes",
        "tensor `w` at offset 375: header field `bytes` at offset 16 has the impossible value 1152921504606846976",
    ),
    (
        "planes_more_chunks",
        "tensor `w` at offset 375: byte planes of 96 bytes, but 332 are needed",
    ),
    (
        "planes_chunk_of_nothing",
        "tensor `w` at offset 375: header field `chunk` at offset 24 has the impossible value 0",
    ),
    (
        "planes_chunk_too_large",
        "tensor `w` at offset 375: header field `chunk` at offset 24 has the impossible value 2097153",
    ),
    (
        "planes_other_bytes",
        "tensor `w` of 36 bytes is stored as planes of 40",
    ),
    (
        "planes_coder",
        "tensor `w` at offset 375: coder 3 at offset 36 is not supported",
    ),
    (
        "planes_raw_short",
        "tensor `w` at offset 375: plane 1 of chunk 0 has the impossible length 19 at offset 40",
    ),
    (
        "planes_constant_long",
        "tensor `w` at offset 375: plane 0 of chunk 0 has the impossible length 20 at offset 36",
    ),
    (
        "planes_frame_long",
        "tensor `w` at offset 375: plane 0 of chunk 0 has the impossible length 20 at offset 36",
    ),
    (
        "planes_no_frame",
        "tensor `w` at offset 374: plane 1 of chunk 0 at offset 45 cannot be decoded: Unknown frame descriptor",
    ),
    (
        "planes_frame_of_too_much",
        "tensor `w` at offset 374: plane 1 of chunk 0 at offset 45 cannot be decoded: Destination buffer is too small",
    ),
    (
        "planes_frame_of_too_little",
        "tensor `w` at offset 374: plane 1 of chunk 0 at offset 45 cannot be decoded: it has fewer bytes than the plane",
    ),
    (
        "planes_decode_otherwise",
        "tensor `w` at offset 374: checksum of chunk 0 at offset 44 is d19b614c, but 38f71a9f was stored: the data is damaged",
    ),
    (
        "planes_damaged",
        "tensor `w` at offset 375: checksum of chunk 0 at offset 44 is 3942e782, but 38f71a9f was stored: the data is damaged",
    ),
];
