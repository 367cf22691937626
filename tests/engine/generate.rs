//! Texts from executors that are no models.

use zipserv_engine::{
    Error, Executor, Generator, Request, Sampling,
    generate::{FinishReason, Generation, Limits, Listener},
};

use super::bytes::{END, Fake, VOCABULARY, noise, spelling, tokenizer};

/// Keeps what it is told.
#[derive(Default)]
struct Pieces {
    texts: Vec<(usize, String)>,
    /// After so many tokens it wants no more.
    enough: Option<usize>,
}

impl Listener for Pieces {
    fn token(&mut self, request: usize, text: &str) {
        self.texts.push((request, text.into()));
    }

    fn is_cancelled(&self) -> bool {
        self.enough.is_some_and(|enough| self.texts.len() >= enough)
    }
}

fn request(prompt: &str) -> Request {
    Request {
        prompt: prompt.bytes().map(u32::from).collect(),
        end: vec![END],
        ..Request::default()
    }
}

fn generate(
    executor: &mut dyn Executor,
    requests: &[Request],
    limits: Limits,
) -> (Vec<Generation>, Pieces) {
    let (tokenizer, mut pieces) = (tokenizer(), Pieces::default());
    let mut generator = Generator::new(executor, &tokenizer, limits);
    let generations = generator.generate(requests, &mut pieces).unwrap();
    (generations, pieces)
}

fn one(executor: &mut dyn Executor, request: Request) -> (Generation, Pieces) {
    let (mut generations, pieces) = generate(executor, &[request], Limits::default());
    assert_eq!(generations.len(), 1);
    (generations.remove(0), pieces)
}

fn refused(executor: &mut dyn Executor, requests: &[Request]) -> Error {
    let (tokenizer, mut pieces) = (tokenizer(), Pieces::default());
    let mut generator = Generator::new(executor, &tokenizer, Limits::default());
    generator.generate(requests, &mut pieces).unwrap_err()
}

#[test]
fn characters_come_whole() {
    let text = "Zoë: 重み, 👩‍🚀 and \u{fffd}.";
    let mut executor = Fake::new(100, spelling(text));
    let (generation, pieces) = one(&mut executor, request("Z"));
    assert_eq!(generation.text, text[1..]);
    assert_eq!(generation.finish_reason, FinishReason::Stop);
    // Each byte is a token; the last one has ended the text.
    let tokens: Vec<_> = generation.tokens.iter().map(|token| token.id).collect();
    let bytes = text.bytes().skip(1).map(u32::from);
    assert_eq!(tokens, bytes.chain([END]).collect::<Vec<_>>());
    let texts: Vec<_> = pieces.texts.iter().map(|(_, text)| &text[..]).collect();
    assert_eq!(texts.len(), tokens.len());
    assert_eq!(texts.concat(), generation.text);
    let whole: Vec<_> = texts.into_iter().filter(|text| !text.is_empty()).collect();
    // Only U+FFFD itself cannot be told from half a character, so it comes with the next one.
    assert!(
        whole
            .iter()
            .all(|piece| piece.chars().count() == 1 || *piece == "\u{fffd}."),
        "{whole:?}"
    );

    // Cut after two of the three bytes of a character.
    let mut executor = Fake::new(100, spelling("a重"));
    let cut = Request {
        max_tokens: Some(2),
        ..request("a")
    };
    let (generation, pieces) = one(&mut executor, cut);
    assert_eq!(generation.text, "");
    assert_eq!(generation.finish_reason, FinishReason::Length);
    assert!(pieces.texts.iter().all(|(_, text)| text.is_empty()));
}

#[test]
fn special_tokens_are_no_text() {
    let mut executor = Fake::new(100, |tokens: &[u32]| {
        super::bytes::certain([97, 257, 98, END][tokens.len() - 1])
    });
    let (generation, _) = one(&mut executor, request("?"));
    assert_eq!(generation.text, "ab");
    assert_eq!(generation.tokens.len(), 4);
}

#[test]
fn stop_strings_may_span_tokens_and_are_not_shown() {
    let text = "One.\n\nUseful.\n\nUser: Two?";
    let stop = vec!["\n\nUser:".to_owned(), "Three".to_owned()];
    let mut executor = Fake::new(100, spelling(text));
    let stopping = Request {
        stop,
        ..request("O")
    };
    let (generation, pieces) = one(&mut executor, stopping);
    assert_eq!(generation.text, "ne.\n\nUseful.");
    assert_eq!(generation.finish_reason, FinishReason::Stop);
    assert_eq!(generation.tokens.len(), "ne.\n\nUseful.\n\nUser:".len());
    let shown: String = pieces.texts.into_iter().map(|(_, text)| text).collect();
    assert_eq!(shown, generation.text);

    // What might have begun one is shown when the text ends before it.
    for max_tokens in [Some("ne.\n\nUse".len()), None] {
        let mut executor = Fake::new(100, spelling("One.\n\nUse"));
        let stop = vec!["\n\nUser:".to_owned()];
        let (generation, _) = one(
            &mut executor,
            Request {
                stop,
                max_tokens,
                ..request("O")
            },
        );
        assert_eq!(generation.text, "ne.\n\nUse");
    }
}

#[test]
fn there_are_as_many_tokens_as_fit() {
    let mut executor = Fake::new(10, spelling("abcdefghijklmnopq"));
    let (generation, _) = one(&mut executor, request("abc"));
    assert_eq!(generation.text, "defghij");
    assert_eq!(generation.finish_reason, FinishReason::Length);
    let three = Request {
        max_tokens: Some(3),
        ..request("abc")
    };
    assert_eq!(one(&mut executor, three).0.text, "def");

    let given = executor.given;
    let mut said =
        |request: Request| refused(&mut executor, &[self::request("ab"), request]).to_string();
    let all = Request {
        max_tokens: Some(8),
        ..request("abc")
    };
    assert_eq!(said(all), "11 tokens, but there is room for 10");
    assert_eq!(
        said(request("abcdefghij")),
        "11 tokens, but there is room for 10"
    );
    assert_eq!(
        said(Request {
            max_tokens: Some(usize::MAX),
            ..request("a")
        }),
        format!("{} tokens, but there is room for 10", usize::MAX)
    );
    assert_eq!(said(request("")), "the prompt has no tokens");
    assert_eq!(
        said(Request {
            max_tokens: Some(0),
            ..request("a")
        }),
        "no tokens are asked for"
    );
    assert_eq!(
        said(Request {
            stop: vec![String::new()],
            ..request("a")
        }),
        "a stop string is empty"
    );
    let sampling = Sampling {
        top_p: 0.0,
        ..Sampling::default()
    };
    assert_eq!(
        said(Request {
            sampling,
            ..request("a")
        }),
        "top-p of 0 is no probability above 0"
    );
    // Before anything was run.
    assert_eq!((executor.given, executor.live()), (given, 0));
}

#[test]
fn neither_neighbours_nor_chunks_change_a_text() {
    let requests: Vec<_> = (0..9u64)
        .map(|index| Request {
            sampling: Sampling {
                temperature: [0.0, 0.7, 1.5][index as usize % 3],
                top_k: (index > 4).then_some(20),
                top_p: 0.9,
                seed: index / 2,
            },
            max_tokens: Some(5 + 3 * index as usize),
            log_probabilities: Some(2),
            ..request(&"a prompt of another length"[index as usize..])
        })
        .collect();
    let alone: Vec<_> = requests
        .iter()
        .map(|request| one(&mut Fake::new(100, noise), request.clone()).0)
        .collect();
    assert!(alone.iter().any(|generation| generation.tokens.len() > 20));
    for (batch, chunk) in [(1, 1), (2, 5), (3, 100), (64, 7), (64, 256), (0, 0)] {
        let mut executor = Fake::new(100, noise);
        let (generations, pieces) = generate(&mut executor, &requests, Limits { chunk, batch });
        assert_eq!(generations, alone, "{batch} {chunk}");
        assert_eq!(executor.batch, batch.clamp(1, 9));
        assert_eq!(executor.chunk, chunk.clamp(1, 26));
        assert_eq!(executor.live(), 0);
        for (index, generation) in generations.iter().enumerate() {
            let own = pieces.texts.iter().filter(|(request, _)| *request == index);
            let text: String = own.map(|(_, text)| &text[..]).collect();
            assert_eq!(text, generation.text);
        }
    }
    // Seeds matter, where it is not the most probable token that is taken.
    let mut other = requests[1].clone();
    other.sampling.seed += 1;
    assert_ne!(one(&mut Fake::new(100, noise), other).0, alone[1]);
}

#[test]
fn log_probabilities_are_those_of_all_logits() {
    let scored = Request {
        log_probabilities: Some(3),
        sampling: Sampling {
            temperature: 2.0,
            top_k: Some(1),
            ..Sampling::default()
        },
        max_tokens: Some(4),
        ..request("xy")
    };
    let (generation, _) = one(&mut Fake::new(100, noise), scored.clone());
    let mut sequence = scored.prompt;
    for token in &generation.tokens {
        let logits: Vec<_> = noise(&sequence).into_iter().map(f64::from).collect();
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        let of = |id: u32| (logits[id as usize].exp() / sum).ln();
        let mut ids: Vec<u32> = (0..VOCABULARY as u32).collect();
        ids.sort_by(|&a, &b| of(b).total_cmp(&of(a)));
        assert_eq!(token.id, ids[0]);
        assert!((token.log_probability.unwrap() - of(token.id)).abs() < 1e-12);
        assert_eq!(token.most_probable.len(), 3);
        for (&(id, log_probability), &expected) in token.most_probable.iter().zip(&ids) {
            assert_eq!(id, expected);
            assert!((log_probability - of(id)).abs() < 1e-12);
        }
        sequence.push(token.id);
    }
    let (plain, _) = one(
        &mut Fake::new(100, noise),
        Request {
            max_tokens: Some(1),
            ..request("x")
        },
    );
    assert_eq!(plain.tokens[0].log_probability, None);
    assert!(plain.tokens[0].most_probable.is_empty());
}

#[test]
fn a_chat_goes_on_from_where_it_was() {
    let text = "Hello, who is there? It is me.";
    let (tokenizer, mut pieces) = (tokenizer(), Pieces::default());
    let mut executor = Fake::new(100, spelling(text));
    let mut generator = Generator::new(&mut executor, &tokenizer, Limits::default());
    let mut ask = |prompt: &str, max_tokens| {
        let request = Request {
            max_tokens: Some(max_tokens),
            ..request(prompt)
        };
        generator
            .generate(&[request], &mut pieces)
            .unwrap()
            .remove(0)
            .text
    };
    assert_eq!(ask("Hello", 5), ", who");
    assert_eq!(ask("Hello, who is", 7), " there?");
    // Another conversation.
    assert_eq!(ask("hello", 1), ",");
    assert_eq!(ask("hello", 1), ",");
    drop(generator);
    // Of each answer all but the last token, and what the second prompt has more.
    assert_eq!(executor.given, (5 + 4) + (" is".len() + 1 + 6) + 5 + 5);
    assert_eq!(executor.live(), 0);
}

#[test]
fn nothing_is_left_of_what_failed_or_was_cancelled() {
    let mut executor = Fake::new(100, |tokens: &[u32]| {
        let mut logits = noise(tokens);
        if tokens.len() == 12 {
            logits[7] = f32::NAN;
        }
        logits
    });
    let requests = [request("ab"), request("abcdef")];
    assert_eq!(
        refused(&mut executor, &requests).to_string(),
        "the logit of token 7 is NaN"
    );
    assert_eq!(executor.live(), 0);

    let tokenizer = tokenizer();
    let mut executor = Fake::new(100, spelling("abcdefghijklmnopqrstuvwxyz"));
    let mut pieces = Pieces {
        enough: Some(4),
        ..Pieces::default()
    };
    let requests = [request("ab"), request("abcdef"), request("a")];
    let limits = Limits {
        batch: 2,
        ..Limits::default()
    };
    let mut generator = Generator::new(&mut executor, &tokenizer, limits);
    let generations = generator.generate(&requests, &mut pieces).unwrap();
    drop(generator);
    let texts: Vec<_> = generations
        .iter()
        .map(|generation| &generation.text[..])
        .collect();
    assert_eq!(texts, ["cd", "gh", ""]);
    let is_cancelled =
        |generation: &Generation| generation.finish_reason == FinishReason::Cancelled;
    assert!(generations.iter().all(is_cancelled));
    assert_eq!(executor.live(), 0);
}

#[test]
fn texts_are_the_same_where_the_executor_chooses_by_itself() {
    let request = |prompt: &str, max_tokens, stop: &[&str]| Request {
        max_tokens,
        stop: stop.iter().map(|&stop| stop.into()).collect(),
        ..request(prompt)
    };
    let sampled = Request {
        sampling: Sampling {
            temperature: 0.8,
            ..Sampling::default()
        },
        ..request("and", Some(5), &[])
    };
    let text = "Texts end, or are ended, in the midst of what was chosen; \u{e9} has two bytes.";
    for batch in [1, 3] {
        for requests in [
            vec![request("Te", None, &[])],
            vec![request("T", Some(19), &[]), request("Tex", Some(3), &[])],
            vec![
                request("Texts", None, &["d, i", "zz"]),
                request("T", None, &["; \u{e9}"]),
            ],
            vec![request("Texts", Some(30), &[]), sampled.clone()],
        ] {
            let limits = Limits { chunk: 2, batch };
            let run = |chooses, is_noise: bool| {
                let logits = |tokens: &[u32]| match is_noise {
                    true => noise(tokens),
                    false => spelling(text)(tokens),
                };
                let mut fake = Fake::new(200, logits);
                fake.chooses = chooses;
                let generations = generate(&mut fake, &requests, limits).0;
                assert_eq!(fake.live(), 0);
                generations
            };
            for is_noise in [false, true] {
                assert_eq!(run(true, is_noise), run(false, is_noise), "{requests:?}");
            }
        }
    }
}

#[test]
fn a_chat_goes_on_where_the_executor_went_too_far() {
    let (tokenizer, mut fake) = (tokenizer(), Fake::new(200, spelling("ab cdefgh")));
    fake.chooses = true;
    let mut generator = Generator::new(&mut fake, &tokenizer, Limits::default());
    let stopped = Request {
        stop: vec!["de".into()],
        ..request("ab")
    };
    let first = &generator.generate(&[stopped], &mut ()).unwrap()[0];
    assert_eq!(first.text, " c");
    let second = &generator.generate(&[request("ab cde")], &mut ()).unwrap()[0];
    assert_eq!(second.text, "fgh");
}
