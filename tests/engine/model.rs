//! Models as a whole: what does not change logits, and what is refused.

use half::bf16;
use zipserv_engine::{Chunk, CpuExecutor, Error, Executor, Logits, SequenceId};

use crate::support::*;

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Logits of all tokens of a text by itself, cut after so many tokens each time.
fn alone(executor: &mut CpuExecutor, text: &[u32], chunk: usize) -> Vec<u32> {
    let sequence = executor.start().unwrap();
    let mut found = Vec::new();
    for tokens in text.chunks(chunk) {
        let chunk = Chunk { sequence, tokens };
        found.extend(executor.forward(&[chunk], Logits::All).unwrap());
    }
    executor.end(sequence);
    bits(&found)
}

#[test]
fn chunks_do_not_change_a_bit() {
    for config in configs() {
        let mut executor = executor(&config);
        let text = tokens(CONTEXT, 1);
        let whole = alone(&mut executor, &text, CONTEXT);
        assert_eq!(whole.len(), CONTEXT * VOCABULARY as usize);
        for chunk in [1, 5, 17] {
            assert!(
                alone(&mut executor, &text, chunk) == whole,
                "{config}, {chunk}"
            );
        }
    }
}

#[test]
fn what_runs_beside_it_does_not_change_a_bit() {
    for config in configs() {
        let mut executor = executor(&config);
        let texts = [tokens(20, 1), tokens(33, 2), tokens(9, 3)];
        let expected = texts.each_ref().map(|text| alone(&mut executor, text, 40));

        let sequences = texts.each_ref().map(|_| executor.start().unwrap());
        let mut found = texts.each_ref().map(|_| Vec::new());
        // Each in chunks of its own: some start and end before others.
        let lens = [3, 8, 9];
        for step in 0.. {
            let mut chunks = Vec::new();
            for ((text, len), &sequence) in texts.iter().zip(lens).zip(&sequences) {
                if let Some(tokens) = text.chunks(len).nth(step) {
                    chunks.push(Chunk { sequence, tokens });
                }
            }
            if chunks.is_empty() {
                break;
            }
            let logits = executor.forward(&chunks, Logits::All).unwrap();
            let mut rows = logits.chunks(VOCABULARY as usize);
            for chunk in &chunks {
                let index = sequences.iter().position(|s| *s == chunk.sequence).unwrap();
                let rows = rows.by_ref().take(chunk.tokens.len());
                found[index].extend(rows.flat_map(bits));
            }
        }
        assert!(found == expected, "{config}");
    }
}

#[test]
fn logits_of_the_last_tokens_or_of_none() {
    let mut executor = executor(&configs()[0]);
    let texts = [tokens(6, 1), tokens(3, 2)];
    let last = |bits: Vec<u32>| bits[bits.len() - VOCABULARY as usize..].to_vec();
    let expected = texts
        .each_ref()
        .map(|text| last(alone(&mut executor, text, 9)));

    let [a, b] = [executor.start().unwrap(), executor.start().unwrap()];
    let start = [Chunk {
        sequence: a,
        tokens: &texts[0][..2],
    }];
    assert!(executor.forward(&start, Logits::No).unwrap().is_empty());
    let rest = [
        Chunk {
            sequence: b,
            tokens: &texts[1],
        },
        Chunk {
            sequence: a,
            tokens: &texts[0][2..],
        },
    ];
    let logits = executor.forward(&rest, Logits::Last).unwrap();
    assert_eq!(
        bits(&logits),
        [expected[1].clone(), expected[0].clone()].concat()
    );
}

#[test]
fn not_a_number_does_not_reach_other_sequences() {
    for config in configs() {
        let mut tensors = tensors(&config);
        let (_, shape, bytes) = tensors.get_mut("model.embed_tokens.weight").unwrap();
        // The last token's embedding. It makes logits too where these are tied.
        let bad = VOCABULARY - 1;
        let start = 2 * shape[1] * bad as usize;
        bytes[start..][..2].copy_from_slice(&bf16::NAN.to_le_bytes());
        let folder = folder(&config, &tensors);
        let mut executor = CpuExecutor::open(folder.path()).unwrap();
        let text: Vec<_> = tokens(12, 1).iter().map(|token| token % bad).collect();
        let expected = alone(&mut executor, &text, 12);

        let [good, other] = [executor.start().unwrap(), executor.start().unwrap()];
        let mut found = Vec::new();
        for token in text.chunks(1) {
            let chunks = [
                Chunk {
                    sequence: other,
                    tokens: &[3, bad],
                },
                Chunk {
                    sequence: good,
                    tokens: token,
                },
            ];
            let logits = executor.forward(&chunks, Logits::All).unwrap();
            let rows: Vec<_> = logits.chunks(VOCABULARY as usize).collect();
            assert!(rows[1].iter().all(|logit| logit.is_nan()));
            found.extend(bits(rows[2]));
        }
        assert!(found == expected, "{config}");
    }
}

#[test]
fn a_sequence_starts_empty_where_another_has_ended() {
    let mut executor = executor(&configs()[0]);
    let text = tokens(10, 1);
    let expected = alone(&mut executor, &text, 10);
    let (first, second) = (executor.start().unwrap(), executor.start().unwrap());
    assert_ne!(first, second);
    let chunk = Chunk {
        sequence: first,
        tokens: &[1, 2, 3],
    };
    executor.forward(&[chunk], Logits::No).unwrap();
    executor.end(first);
    assert_eq!(executor.start().unwrap(), first);
    let chunk = Chunk {
        sequence: first,
        tokens: &text,
    };
    assert_eq!(
        bits(&executor.forward(&[chunk], Logits::All).unwrap()),
        expected
    );
}

#[test]
fn what_cannot_be_added_is_refused_and_changes_nothing() {
    let mut executor = executor(&configs()[1]);
    let text = tokens(CONTEXT, 1);
    let expected = alone(&mut executor, &text, CONTEXT);
    let [sequence, ended] = [executor.start().unwrap(), executor.start().unwrap()];
    executor.end(ended);
    executor.end(SequenceId(99));
    let (start, end) = text.split_at(CONTEXT - 5);
    let mut found = executor
        .forward(
            &[Chunk {
                sequence,
                tokens: start,
            }],
            Logits::All,
        )
        .unwrap();

    let good = Chunk {
        sequence,
        tokens: &[1],
    };
    let mut refused = |chunks: &[Chunk], expected: &str| {
        let error = executor.forward(chunks, Logits::Last).unwrap_err();
        assert_eq!(error.to_string(), expected);
        error
    };
    refused(
        &[
            good,
            Chunk {
                sequence: ended,
                tokens: &[1],
            },
        ],
        "there is no sequence 1",
    );
    refused(&[good, good], "two chunks of sequence 0");
    refused(
        &[Chunk {
            sequence,
            tokens: &[],
        }],
        "no tokens for sequence 0",
    );
    let unknown = Chunk {
        sequence,
        tokens: &[1, VOCABULARY],
    };
    refused(&[unknown], "token 61: the model has 61");
    let long = [Chunk {
        sequence,
        tokens: &[1; 6],
    }];
    let error = refused(&long, "49 tokens, but there is room for 48");
    assert!(matches!(
        error,
        Error::Context {
            tokens: 49,
            room: 48
        }
    ));

    found.extend(
        executor
            .forward(
                &[Chunk {
                    sequence,
                    tokens: end,
                }],
                Logits::All,
            )
            .unwrap(),
    );
    assert!(bits(&found) == expected);
}
