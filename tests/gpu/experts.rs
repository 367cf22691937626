//! Tokens of a mixture's experts are multiplied by the matrices that they were sent to.

use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use zipserv::{
    ExpertStack, Matrix,
    gpu::{
        Buffer, ExpertInputs, GpuError, GroupedLinear, GroupedPlan, OutputType, RawExperts,
        RawGrouped, RawRouting, Routing,
    },
};

use crate::{
    data::{KINDS, Kind, Product},
    lab::{Lab, quick, refused},
};

/// How tokens choose their experts.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Uniform,
    /// Most take the first few.
    Skewed,
    /// All take one.
    One,
    /// Some experts are none.
    Invalid,
}

impl Choice {
    fn experts_of(self, tokens: usize, top_k: usize, experts: usize) -> Vec<i32> {
        let mut rng = SmallRng::seed_from_u64((tokens * 7 + top_k * 3 + experts) as u64);
        let all = tokens * top_k;
        let any = |rng: &mut SmallRng| rng.random_range(0..experts as i32);
        let choose = |_| match self {
            Self::Uniform => any(&mut rng),
            Self::Skewed => any(&mut rng).min(any(&mut rng)).min(any(&mut rng)),
            Self::One => experts as i32 - 1,
            Self::Invalid => [any(&mut rng), -1, experts as i32, i32::MAX][rng.random_range(0..4)],
        };
        (0..all).map(choose).collect()
    }
}

/// A layer's matrices, and activations.
struct Layer {
    experts: usize,
    m: usize,
    k: usize,
    bits: Vec<u16>,
}

impl Layer {
    fn new(kind: Kind, experts: usize, m: usize, k: usize) -> Self {
        let bits = kind.weights(experts * m, k);
        Self {
            experts,
            m,
            k,
            bits,
        }
    }

    fn linear(&self, lab: &Lab) -> GroupedLinear {
        let matrices = self.bits.chunks(self.m * self.k);
        let matrices = matrices.map(|bits| Matrix::from_bits(self.m, self.k, bits).unwrap());
        let stack = ExpertStack::encode(&matrices.collect::<Vec<_>>()).unwrap();
        GroupedLinear::new(lab.device, &stack).unwrap()
    }

    fn expert(&self, expert: usize) -> &[u16] {
        &self.bits[expert * self.m * self.k..][..self.m * self.k]
    }
}

/// The outputs of each assignment, by its place; NaN where there was none.
fn multiply(
    lab: &mut Lab,
    linear: &GroupedLinear,
    routing: &Routing,
    x: &[u16],
    by_expert: bool,
) -> Vec<u16> {
    let rows = routing.raw().assignments();
    let x = lab.buffer(x);
    let mut y = lab.buffer(&vec![crate::lab::NAN; rows * linear.features()]);
    let inputs = match by_expert {
        true => ExpertInputs::ByExpert((&x).into()),
        false => ExpertInputs::OfTokens((&x).into()),
    };
    linear
        .forward(&lab.stream, inputs, routing, &mut y, &mut lab.workspace)
        .unwrap();
    lab.bits(&y)
}

/// Routes, and gives the place of each assignment once it is checked: places are those of a sort by expert.
fn route(lab: &Lab, routing: &mut Routing, experts_of: &[i32]) -> Vec<Option<u32>> {
    let ids = Buffer::from_slice(lab.device, experts_of).unwrap();
    routing.route(&lab.stream, &ids).unwrap();
    let places = routing.places(&lab.stream).unwrap();
    let experts = routing.raw().experts as i32;
    let mut order: Vec<(u32, i32)> = Vec::new();
    for (&place, &expert) in places.iter().zip(experts_of) {
        assert_eq!(place.is_some(), (0..experts).contains(&expert));
        order.extend(place.map(|place| (place, expert)));
    }
    order.sort_unstable();
    assert!(
        order
            .iter()
            .map(|&(place, _)| place)
            .eq(0..order.len() as u32)
    );
    assert!(order.is_sorted_by_key(|&(_, expert)| expert));
    // Tokens of an expert are in their order, or they would be in other groups from run to run.
    for expert in 0..experts {
        let own = experts_of
            .iter()
            .zip(&places)
            .filter(|(e, _)| **e == expert);
        assert!(own.map(|(_, place)| place).is_sorted());
    }
    places
}

/// Checks each assignment's outputs against sums in FP64.
fn check(
    lab: &mut Lab,
    layer: &Layer,
    choice: Choice,
    (tokens, top_k): (usize, usize),
    group_tokens: usize,
) {
    let what = format!(
        "{choice:?}, {} experts of {} x {}, {tokens} tokens of {top_k}, groups of {group_tokens}",
        layer.experts, layer.m, layer.k
    );
    let linear = layer.linear(lab);
    let experts_of = choice.experts_of(tokens, top_k, layer.experts);
    let mut routing = Routing::new(lab.device, tokens, top_k, layer.experts, group_tokens).unwrap();
    let places = route(lab, &mut routing, &experts_of);
    let x = Kind::Gaussian.activations(tokens, layer.k);
    let y = multiply(lab, &linear, &routing, &x, false);
    for (at, place) in places.iter().enumerate() {
        let Some(place) = *place else { continue };
        let x = &x[at / top_k * layer.k..][..layer.k];
        let product = Product::new(x, layer.expert(experts_of[at] as usize), layer.k);
        let y = &y[place as usize * layer.m..][..layer.m];
        product.check(y, &format_args!("{what}, assignment {at}"));
    }
    // What no assignment has is left alone.
    let used = places.iter().flatten().count();
    assert!(
        y[used * layer.m..]
            .iter()
            .all(|&bits| bits == crate::lab::NAN),
        "{what}"
    );
}

/// Sizes of groups of the device's kernels.
fn groups(lab: &Lab, layer: &Layer) -> Vec<usize> {
    let linear = layer.linear(lab);
    let plan = |tokens| {
        GroupedPlan::with_groups(linear.weights(), layer.experts, layer.m, tokens).unwrap()
    };
    let mut groups: Vec<usize> = [8, 16, 32, 64, 144, 256]
        .map(|n| plan(n).group_tokens())
        .to_vec();
    groups.dedup();
    groups
}

#[test]
fn every_kernel_and_choice() {
    for mut lab in Lab::each() {
        let layer = Layer::new(Kind::Gaussian, 8, 96, 200);
        for group_tokens in groups(&lab, &layer) {
            for choice in [
                Choice::Uniform,
                Choice::Skewed,
                Choice::One,
                Choice::Invalid,
            ] {
                for tokens in [(1, 2), (3, 2), (17, 3), (70, 8)] {
                    check(&mut lab, &layer, choice, tokens, group_tokens);
                }
            }
        }
    }
}

#[test]
fn shapes_and_numbers_of_experts() {
    const SHAPES: [(usize, usize, usize); 10] = [
        (3, 300, 320),
        (1, 33, 65),
        (4, 45, 100),
        (3, 1, 7),
        (3, 32, 1),
        (256, 32, 64),
        (64, 128, 520),
        (5, 64, 2048),
        (2, 1024, 72),
        (1024, 32, 8),
    ];
    for mut lab in Lab::each() {
        let shapes = if quick() { &SHAPES[..3] } else { &SHAPES };
        for &(experts, m, k) in shapes {
            let layer = Layer::new(Kind::Gaussian, experts, m, k);
            for group_tokens in groups(&lab, &layer) {
                for tokens in [(1, 1), (9, 2), (130, 1)] {
                    check(&mut lab, &layer, Choice::Uniform, tokens, group_tokens);
                }
            }
        }
    }
}

/// One token's assignments, as a router leaves them, through products of both places of a layer, and summed.
#[test]
fn a_single_token_unsorted() {
    for mut lab in Lab::each() {
        for (experts, m, k) in [(8, 96, 200), (5, 64, 2048), (128, 33, 65), (1, 1024, 72)] {
            let layer = Layer::new(Kind::Gaussian, experts, m, k);
            let linear = layer.linear(&lab);
            let x = Kind::Gaussian.activations(1, k);
            for (choice, top_k) in [
                (Choice::Uniform, 1),
                (Choice::Uniform, 8),
                (Choice::One, 3),
                (Choice::Invalid, 8),
                (Choice::Uniform, 40),
            ] {
                let experts_of = choice.experts_of(1, top_k, experts);
                for (is_64_bit, by_expert) in [(false, false), (true, false), (true, true)] {
                    let rows = if by_expert { top_k } else { 1 };
                    let x = x.repeat(rows);
                    let sums = unsorted(&mut lab, &linear, &x, &experts_of, is_64_bit, by_expert);
                    let what =
                        format!("{choice:?}, {experts} experts of {m} x {k}, {top_k} of them");
                    let mut expected = vec![(0.0, 0.0); m];
                    for (at, &expert) in experts_of.iter().enumerate() {
                        if (0..experts as i32).contains(&expert) {
                            let product = Product::new(&x[..k], layer.expert(expert as usize), k);
                            let weight = 0.5 + at as f64;
                            for (all, one) in expected.iter_mut().zip(product.sums()) {
                                *all = (all.0 + weight * one.0, all.1 + weight * one.1);
                            }
                        }
                    }
                    for (&bits, (exact, all)) in sums.iter().zip(expected) {
                        let value = bf16::from_bits(bits).to_f64();
                        let close = (value - exact).abs() <= exact.abs() / 200.0 + all * 2e-6;
                        assert!(close, "{what}: {value:e}, not {exact:e}");
                    }
                }
            }
        }
    }
}

/// Sums over a single token's experts, each of which is weighted by half more than its number.
fn unsorted(
    lab: &mut Lab,
    linear: &GroupedLinear,
    x: &[u16],
    experts_of: &[i32],
    is_64_bit: bool,
    x_by_expert: bool,
) -> Vec<u16> {
    let (weights, top_k, m) = (linear.weights(), experts_of.len(), linear.features());
    let experts = weights.rows() / m.next_multiple_of(32);
    let plan = GroupedPlan::with_groups(weights, experts, m, 8).unwrap();
    assert!(plan.takes_unsorted(1) && !plan.takes_unsorted(2));
    let numbers: Vec<i32> = match is_64_bit {
        false => experts_of.to_vec(),
        true => experts_of
            .iter()
            .flat_map(|&expert| [expert, expert >> 31])
            .collect(),
    };
    let numbers = Buffer::from_slice(lab.device, &numbers).unwrap();
    let routing = RawRouting {
        address: 0,
        unsorted: Some(RawExperts {
            address: numbers.address(),
            is_64_bit,
        }),
        tokens: 1,
        top_k,
        experts,
        group_tokens: plan.group_tokens(),
    };
    let x = lab.buffer(x);
    // What is left out must not be added, not even times nothing.
    let parts = Buffer::from_slice(lab.device, &vec![f32::NAN; top_k * m]).unwrap();
    let operands = RawGrouped {
        x: x.address(),
        x_stride: weights.cols(),
        x_by_expert,
        y: parts.address(),
        y_stride: m,
        output: OutputType::F32,
        is_gated: false,
        follows_routing: true,
        scratch: 0,
    };
    let scales: Vec<f32> = (0..top_k).map(|at| 0.5 + at as f32).collect();
    let scales = Buffer::from_slice(lab.device, &scales).unwrap();
    let y = lab.buffer(&vec![crate::lab::NAN; m.next_multiple_of(4)]);
    let stream = lab.stream.raw();
    // SAFETY: all operands are there until the result is read.
    unsafe {
        plan.run_raw(stream, weights, &operands, &routing, &lab.workspace)
            .unwrap();
        if m.is_multiple_of(4) {
            lab.device
                .combine_raw(
                    stream,
                    parts.address(),
                    scales.address(),
                    y.address(),
                    m,
                    &routing,
                )
                .unwrap();
            return lab.bits(&y);
        }
    }
    let parts = parts.to_vec(&lab.stream).unwrap();
    (0..m)
        .map(|feature| {
            let there = |&at: &usize| (0..experts as i32).contains(&experts_of[at]);
            let sum: f32 = (0..top_k)
                .filter(there)
                .map(|at| (0.5 + at as f32) * parts[at * m + feature])
                .sum();
            bf16::from_f32(sum).to_bits()
        })
        .collect()
}

/// More groups than one of most experts, more row blocks than a cluster has, more k-tiles than a ring has stages.
#[test]
fn many_tokens_an_expert() {
    for mut lab in Lab::each() {
        let layer = Layer::new(Kind::Outliers, 3, 700, 712);
        for group_tokens in groups(&lab, &layer) {
            for choice in [Choice::Uniform, Choice::Skewed, Choice::Invalid] {
                let tokens = if quick() { (150, 2) } else { (600, 2) };
                check(&mut lab, &layer, choice, tokens, group_tokens);
            }
        }
    }
}

/// Rows in the order of experts, whether tensor copies can read them or not.
#[test]
fn activations_by_expert() {
    for mut lab in Lab::each() {
        for k in [33, 64, 100, 520] {
            let layer = Layer::new(Kind::Gaussian, 5, 96, k);
            let linear = layer.linear(&lab);
            for group_tokens in groups(&lab, &layer) {
                let experts_of = Choice::Skewed.experts_of(200, 2, 5);
                let mut routing = Routing::new(lab.device, 200, 2, 5, group_tokens).unwrap();
                let places = route(&lab, &mut routing, &experts_of);
                let x = Kind::Gaussian.activations(400, k);
                let y = multiply(&mut lab, &linear, &routing, &x, true);
                for (at, place) in places.into_iter().enumerate() {
                    let place = place.unwrap() as usize;
                    let expert = layer.expert(experts_of[at] as usize);
                    let product = Product::new(&x[place * k..][..k], expert, k);
                    let what = format_args!("K {k}, groups of {group_tokens}, assignment {at}");
                    product.check(&y[place * layer.m..][..layer.m], &what);
                }
            }
        }
    }
}

/// Checks a token's gated outputs against sums in FP64: of the gate, then of what it is multiplied by.
fn check_gated(row: &[u16], sums: &Product, what: &str) {
    let (gate, up) = sums.sums().split_at(row.len());
    for (feature, &bits) in row.iter().enumerate() {
        let (gate, up) = (gate[feature].0, up[feature].0);
        let expected = gate / (1.0 + (-gate).exp()) * up;
        let value = bf16::from_bits(bits).to_f64();
        // Gate, up and what comes of them are rounded to BF16.
        let close = (value - expected).abs() <= expected.abs() / 60.0 + 1e-6;
        let same = close || (expected.is_nan() && value.is_nan());
        assert!(
            same,
            "{what}, feature {feature}: {value:e}, not {expected:e}"
        );
    }
}

/// Halves of so many strips that row blocks lack some, and clusters row blocks; more k-tiles than a ring has stages;
/// experts without tokens, and some whose gate, or what it is multiplied by, is NaN.
#[test]
fn gated_products() {
    const SHAPES: [(usize, usize); 5] = [(96, 200), (32, 64), (64, 712), (160, 1000), (352, 136)];
    let (experts, tokens, top_k) = (7, 150, 2);
    for mut lab in Lab::each() {
        for &(inner, k) in if quick() { &SHAPES[..1] } else { &SHAPES[..] } {
            let mut layer = Layer::new(Kind::Gaussian, experts, 2 * inner, k);
            let half = inner * k;
            layer.bits[2 * half..3 * half].fill(crate::lab::NAN);
            layer.bits[7 * half..8 * half].fill(crate::lab::NAN);
            let plain = layer.linear(&lab);
            let gated = layer.linear(&lab).gated();
            let experts_of: Vec<i32> = Choice::Skewed
                .experts_of(tokens, top_k, experts)
                .iter()
                .map(|&expert| [0, 1, 3, 3, 4, 5, 5][expert as usize])
                .collect();
            let x = Kind::Gaussian.activations(tokens, k);
            for group_tokens in groups(&lab, &layer) {
                let mut routing =
                    Routing::new(lab.device, tokens, top_k, experts, group_tokens).unwrap();
                let places = route(&lab, &mut routing, &experts_of);
                let y = multiply(&mut lab, &gated, &routing, &x, false);
                for (at, place) in places.iter().enumerate() {
                    let what = format!("{inner} x {k}, groups of {group_tokens}, assignment {at}");
                    let expert = layer.expert(experts_of[at] as usize);
                    let product = Product::new(&x[at / top_k * k..][..k], expert, k);
                    let row = &y[place.unwrap() as usize * inner..][..inner];
                    check_gated(row, &product, &what);
                }
                let plan =
                    GroupedPlan::with_groups(plain.weights(), experts, layer.m, group_tokens);
                if plan.unwrap().kernel().starts_with("prefill_grouped") {
                    // Whole output tiles have the same sums, so those that another kernel gates are the same, too.
                    let products = multiply(&mut lab, &plain, &routing, &x, false);
                    let products = lab.buffer(&products);
                    let other = lab.buffer(&vec![0; y.len()]);
                    let (from, to) = (products.address(), other.address());
                    let (stream, rows) = (lab.stream.raw(), tokens * top_k);
                    // SAFETY: both have their rows, and are there until the result is read.
                    unsafe {
                        (lab.device)
                            .gate_raw(stream, from, to, rows, inner, false)
                            .unwrap();
                    }
                    let what = format!("{inner} x {k}, groups of {group_tokens}");
                    assert!(lab.bits(&other) == y, "{what}");
                }
            }
        }
    }
}

/// Gated outputs that are FP32 are those that are BF16, before they are rounded; and those of no assignment are left
/// alone.
#[test]
fn gated_outputs_of_both_types() {
    for mut lab in Lab::each() {
        // Three strips a half, where row blocks have two of each.
        let layer = Layer::new(Kind::Gaussian, 4, 192, 136);
        let linear = layer.linear(&lab).gated();
        for group_tokens in groups(&lab, &layer) {
            let experts_of = Choice::Invalid.experts_of(250, 2, 4);
            let mut routing = Routing::new(lab.device, 250, 2, 4, group_tokens).unwrap();
            let used = route(&lab, &mut routing, &experts_of);
            let used = used.iter().flatten().count() * linear.features();
            let x = Kind::Gaussian.activations(250, layer.k);
            let rounded = multiply(&mut lab, &linear, &routing, &x, false);
            let x = lab.buffer(&x);
            let all = vec![f32::NAN; 500 * linear.features()];
            let mut y = Buffer::from_slice(lab.device, &all).unwrap();
            let inputs = ExpertInputs::OfTokens((&x).into());
            linear
                .forward(&lab.stream, inputs, &routing, &mut y, &mut lab.workspace)
                .unwrap();
            let y = y.to_vec(&lab.stream).unwrap();
            let own = y.iter().map(|&y| bf16::from_f32(y).to_bits());
            let what = format!("groups of {group_tokens}");
            assert!(own.take(used).eq(rounded[..used].iter().copied()), "{what}");
            assert!(y[used..].iter().all(|y| y.is_nan()), "{what}");
            let rest = &rounded[used..];
            assert!(rest.iter().all(|&bits| bits == crate::lab::NAN), "{what}");
        }
    }
}

#[test]
fn weights_of_every_kind() {
    for mut lab in Lab::each() {
        for kind in KINDS {
            let layer = Layer::new(kind, 4, 64, 192);
            let linear = layer.linear(&lab);
            for group_tokens in groups(&lab, &layer) {
                let experts_of = Choice::Uniform.experts_of(9, 2, 4);
                let mut routing = Routing::new(lab.device, 9, 2, 4, group_tokens).unwrap();
                let places = route(&lab, &mut routing, &experts_of);
                let x = kind.activations(9, layer.k);
                let y = multiply(&mut lab, &linear, &routing, &x, false);
                for (at, place) in places.into_iter().enumerate() {
                    let x = &x[at / 2 * layer.k..][..layer.k];
                    let product = Product::new(x, layer.expert(experts_of[at] as usize), layer.k);
                    let y = &y[place.unwrap() as usize * layer.m..][..layer.m];
                    product.check(y, &format_args!("{kind:?}, groups of {group_tokens}"));
                }
            }
        }
    }
}

/// Gate and up in one matrix, then down of what comes of it, then the sum over a token's experts.
#[test]
fn a_whole_layer() {
    for mut lab in Lab::each() {
        let (experts, hidden, inner, top_k) = (6, 192, 96, 3);
        let up = Layer::new(Kind::Gaussian, experts, 2 * inner, hidden);
        let down = Layer::new(Kind::Gaussian, experts, hidden, inner);
        let (gated, plain) = (up.linear(&lab).gated(), down.linear(&lab));
        for group_tokens in groups(&lab, &up) {
            for tokens in [1, 5, 40, 300] {
                let what = format!("{tokens} tokens, groups of {group_tokens}");
                let experts_of = Choice::Skewed.experts_of(tokens, top_k, experts);
                let mut routing =
                    Routing::new(lab.device, tokens, top_k, experts, group_tokens).unwrap();
                let places = route(&lab, &mut routing, &experts_of);
                let x = Kind::Gaussian.activations(tokens, hidden);
                let inside = multiply(&mut lab, &gated, &routing, &x, false);
                for (at, place) in places.iter().enumerate() {
                    let expert = up.expert(experts_of[at] as usize);
                    let x = &x[at / top_k * hidden..][..hidden];
                    let row = &inside[place.unwrap() as usize * inner..][..inner];
                    check_gated(row, &Product::new(x, expert, hidden), &what);
                }

                // From here on what the device has made of it so far is taken as it is.
                let weights: Vec<f32> = (0..tokens * top_k)
                    .map(|at| 0.1 + at as f32 / 64.0)
                    .collect();
                let h = lab.buffer(&inside);
                let mut parts = Buffer::<f32>::zeroed(lab.device, tokens * top_k * hidden).unwrap();
                let inputs = ExpertInputs::ByExpert((&h).into());
                plain
                    .forward(
                        &lab.stream,
                        inputs,
                        &routing,
                        &mut parts,
                        &mut lab.workspace,
                    )
                    .unwrap();
                let scales = Buffer::from_slice(lab.device, &weights).unwrap();
                let mut y = Buffer::<bf16>::zeroed(lab.device, tokens * hidden).unwrap();
                routing
                    .combine(&lab.stream, &parts, &scales, &mut y)
                    .unwrap();
                let y = lab.bits(&y);
                for token in 0..tokens {
                    let mut expected = vec![(0.0, 0.0); hidden];
                    for at in token * top_k..(token + 1) * top_k {
                        let row = &inside[places[at].unwrap() as usize * inner..][..inner];
                        let sums = Product::new(row, down.expert(experts_of[at] as usize), inner);
                        let weight = f64::from(weights[at]);
                        for (all, one) in expected.iter_mut().zip(sums.sums()) {
                            *all = (all.0 + weight * one.0, all.1 + weight * one.1);
                        }
                    }
                    for (&bits, (exact, all)) in y[token * hidden..].iter().zip(expected) {
                        let value = bf16::from_bits(bits).to_f64();
                        let close = (value - exact).abs() <= exact.abs() / 200.0 + all * 2e-6;
                        assert!(close, "{what}: {value:e}, not {exact:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_expert_of_nans_reaches_its_own_tokens_only() {
    for mut lab in Lab::each() {
        let mut layer = Layer::new(Kind::Gaussian, 4, 64, 128);
        layer.bits[64 * 128..2 * 64 * 128].fill(crate::lab::NAN);
        let experts_of: Vec<i32> = (0..40).map(|at| at % 4).collect();
        let linear = layer.linear(&lab);
        for group_tokens in groups(&lab, &layer) {
            let mut routing = Routing::new(lab.device, 40, 1, 4, group_tokens).unwrap();
            let places = route(&lab, &mut routing, &experts_of);
            let x = Kind::Gaussian.activations(40, 128);
            let y = multiply(&mut lab, &linear, &routing, &x, false);
            for (at, place) in places.into_iter().enumerate() {
                let row = &y[place.unwrap() as usize * 64..][..64];
                let nans = row
                    .iter()
                    .filter(|&&bits| bf16::from_bits(bits).is_nan())
                    .count();
                assert_eq!(nans, if experts_of[at] == 1 { 64 } else { 0 });
            }
        }
    }
}

/// A token's outputs, by its assignments, alone and among others.
#[test]
fn batch_invariant_bits_do_not_depend_on_other_tokens() {
    for mut lab in Lab::each() {
        let layer = Layer::new(Kind::Gaussian, 8, 128, 1024);
        let linear = layer.linear(&lab).batch_invariant();
        let (most, top_k) = (300, 2);
        let experts_of = Choice::Skewed.experts_of(most, top_k, 8);
        let x = Kind::Gaussian.activations(most, layer.k);
        let mut alone: Vec<Vec<u16>> = Vec::new();
        for tokens in [most, 1, 2, 17, 64, 129] {
            let mut routing = linear.routing(tokens, top_k).unwrap();
            let places = route(&lab, &mut routing, &experts_of[..tokens * top_k]);
            let y = multiply(&mut lab, &linear, &routing, &x[..tokens * layer.k], false);
            for (at, place) in places.into_iter().enumerate() {
                let row = &y[place.unwrap() as usize * layer.m..][..layer.m];
                match alone.get(at) {
                    Some(first) => assert!(first == row, "{tokens} tokens, assignment {at}"),
                    None => alone.push(row.to_vec()),
                }
            }
        }
    }
}

#[test]
fn the_same_bits_in_a_hundred_runs() {
    for mut lab in Lab::each() {
        let layer = Layer::new(Kind::Gaussian, 16, 96, 1000);
        let linear = layer.linear(&lab);
        let experts_of = Choice::Skewed.experts_of(50, 4, 16);
        let x = Kind::Gaussian.activations(50, layer.k);
        for group_tokens in groups(&lab, &layer) {
            let mut first: Option<Vec<u16>> = None;
            for _ in 0..if quick() { 3 } else { 100 } {
                let mut routing = Routing::new(lab.device, 50, 4, 16, group_tokens).unwrap();
                let places = route(&lab, &mut routing, &experts_of);
                let y = multiply(&mut lab, &linear, &routing, &x, false);
                let rows: Vec<u16> = places
                    .into_iter()
                    .flat_map(|place| y[place.unwrap() as usize * layer.m..][..layer.m].to_vec())
                    .collect();
                assert!(*first.get_or_insert_with(|| rows.clone()) == rows);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for mut lab in Lab::each() {
        let linear = Layer::new(Kind::Gaussian, 3, 32, 64).linear(&lab);
        // Of 48 rows each, an expert would start within a tile.
        for (experts, rows) in [(2, 48), (0, 32), (3, 33), (usize::MAX, 32)] {
            refused!(
                GroupedPlan::new(linear.weights(), experts, rows, 8),
                GpuError::Experts { found: 96, .. }
            );
        }
        refused!(
            Routing::new(lab.device, 1, 1, 1025, 8).map(|_| ()),
            GpuError::Routing { .. }
        );
        refused!(
            Routing::new(lab.device, usize::MAX, 2, 8, 8).map(|_| ()),
            GpuError::Routing { .. }
        );
        let routing = Routing::new(lab.device, 4, 1, 3, 8).unwrap();
        let x = Buffer::<bf16>::zeroed(lab.device, 4 * 64).unwrap();
        let mut y = Buffer::<bf16>::zeroed(lab.device, 4 * 32 - 1).unwrap();
        let inputs = || ExpertInputs::OfTokens((&x).into());
        let (stream, workspace) = (&lab.stream, &mut lab.workspace);
        refused!(
            linear.forward(stream, inputs(), &routing, &mut y, workspace),
            GpuError::Length { got: 127, .. }
        );
        let other = Routing::new(lab.device, 4, 1, 4, 8).unwrap();
        let mut y = Buffer::<bf16>::zeroed(lab.device, 4 * 32).unwrap();
        refused!(
            linear.forward(stream, inputs(), &other, &mut y, workspace),
            GpuError::PlanMismatch { .. }
        );
        // Gate and up of 16 features each.
        let gated = linear.gated();
        let mut y = Buffer::<bf16>::zeroed(lab.device, 4 * 16).unwrap();
        refused!(
            gated.forward(stream, inputs(), &routing, &mut y, workspace),
            GpuError::Experts { .. }
        );
    }
}
