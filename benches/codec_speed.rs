//! Times the codec on the BF16 weights of a raw file, for `compare_zipnn.py`.
//!
//! `codec_speed FILE ROWS COLS REPEATS` prints a JSON object with the seconds of each repeat,
//! every operation on one thread (`..._1`) and on two (`..._2`). Each call makes its result in
//! fresh memory and frees it, but for `decode_into`.

use std::{env, error::Error, fs, hint::black_box, time::Instant};

use zipserv::{Matrix, decode, decode_into, encode};

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

    let mut fields = vec![format!("\"stored_bytes\": {}", compressed.as_bytes().len())];
    let mut time = |name: &str, run: &mut dyn FnMut()| {
        let seconds: Vec<_> = (0..repeats)
            .map(|_| {
                let start = Instant::now();
                run();
                start.elapsed().as_secs_f64()
            })
            .collect();
        fields.push(format!("\"{name}\": {seconds:?}"));
    };
    time("memcpy_1", &mut || {
        output.copy_from_slice(black_box(&bytes))
    });
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        let mut time = |name: &str, run: &mut (dyn FnMut() + Send)| {
            time(&format!("{name}_{threads}"), &mut || {
                pool.install(&mut *run)
            });
        };
        time("encode", &mut || drop(black_box(encode(&matrix))));
        time("decode", &mut || drop(black_box(decode(&compressed))));
        time("decode_into", &mut || {
            decode_into(&compressed, &mut output).expect("the size fits");
        });
    }
    println!("{{{}}}", fields.join(", "));
    Ok(())
}
