//! Times the codec on the BF16 weights of a raw file, for `compare_zipnn.py`.
//!
//! `codec_speed FILE ROWS COLS REPEATS` prints a JSON object with the seconds of each repeat,
//! every operation on one thread (`..._1`) and on two (`..._2`). Each call makes its result in
//! fresh memory, but for `decode_into`.

use std::{env, error::Error, fs, hint::black_box, time::Instant};

use zipserv::{Element, Matrix, Planes, decode, decode_into, encode};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [file, rows, cols, repeats] = args.as_slice() else {
        return Err("usage: codec_speed FILE ROWS COLS REPEATS".into());
    };
    let repeats = repeats.parse()?;
    let bytes = fs::read(file)?;
    let matrix = Matrix::from_le_bytes(rows.parse()?, cols.parse()?, &bytes)?;
    let compressed = encode(&matrix)?;
    let mut output = vec![0; bytes.len()];
    decode_into(&compressed, &mut output)?;
    assert!(output == bytes, "the codec is not lossless");
    let element = Element::float(2).ok_or("an element has two bytes")?;
    let planes = Planes::encode(&bytes, element).ok_or("planes do not shrink")?;
    assert!(planes.decode()? == bytes, "planes are not lossless");

    let mut fields = vec![
        format!("\"stored_bytes\": {}", compressed.as_bytes().len()),
        format!("\"archive_bytes\": {}", planes.as_bytes().len()),
    ];
    let mut add = |name: &str, seconds: Vec<f64>| fields.push(format!("\"{name}\": {seconds:?}"));
    let copy = || output.copy_from_slice(black_box(&bytes));
    add("memcpy_1", time(repeats, copy));
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        pool.install(|| {
            let seconds = time(repeats, || encode(&matrix));
            add(&format!("encode_{threads}"), seconds);
            let seconds = time(repeats, || decode(&compressed));
            add(&format!("decode_{threads}"), seconds);
            let seconds = time(repeats, || decode_into(&compressed, &mut output));
            add(&format!("decode_into_{threads}"), seconds);
            let seconds = time(repeats, || Planes::encode(&bytes, element));
            add(&format!("archive_encode_{threads}"), seconds);
            let seconds = time(repeats, || planes.decode());
            add(&format!("archive_decode_{threads}"), seconds);
        });
    }
    println!("{{{}}}", fields.join(", "));
    Ok(())
}

/// Seconds of each run. Freeing the result is not part of it.
fn time<T>(repeats: usize, mut run: impl FnMut() -> T) -> Vec<f64> {
    (0..repeats)
        .map(|_| {
            let start = Instant::now();
            let result = black_box(run());
            let seconds = start.elapsed().as_secs_f64();
            drop(result);
            seconds
        })
        .collect()
}
