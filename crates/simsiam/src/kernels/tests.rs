//! Kernels against their twins on the CPU, forward and every gradient, and the same bits from any number of threads.
//! `SIMSIAM_DEVICE` names the device of the kernels.

use burn::tensor::{DType, Device, Tensor, TensorData};
use recipe::{Draws, Purpose};

use super::{Normalised, Over, Part, Then, is_flex, twin};
use crate::DeviceName;

/// Relative to the tensor's norm: sums of some hundred products in f32, in another order.
const TOLERANCE: f64 = 2e-5;

/// The same where activations and their gradients have the 8 bits of bf16, and normalisations take differences.
const BF16_TOLERANCE: f64 = 2e-2;

fn device() -> Device {
    let name = std::env::var("SIMSIAM_DEVICE").map_or(DeviceName::Cpu, |name| name.parse().unwrap());
    name.open(&std::env::temp_dir()).unwrap()
}

/// Statistics of this batch only.
fn alone(groups: usize) -> Over {
    Over { groups, everywhere: None }
}

/// Images, height, width, channels, output channels, kernel, stride.
const CONVOLUTIONS: [[usize; 7]; 16] = [
    [1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 1, 3, 1],
    [2, 5, 5, 1, 3, 3, 1],
    [1, 7, 4, 3, 8, 3, 2],
    [2, 9, 9, 3, 5, 7, 2],
    [3, 8, 6, 3, 64, 7, 2],
    [2, 4, 4, 16, 16, 1, 1],
    [2, 5, 7, 17, 33, 1, 2],
    [1, 6, 6, 16, 64, 3, 1],
    [2, 3, 3, 20, 70, 3, 1],
    [3, 3, 5, 19, 130, 3, 2],
    [2, 2, 2, 64, 128, 3, 2],
    [5, 6, 6, 64, 64, 3, 1],
    [2, 12, 11, 32, 96, 3, 2],
    [7, 1, 1, 48, 80, 3, 1],
    [1, 13, 2, 24, 16, 7, 1],
];

#[test]
fn convolutions_match_their_twin() {
    for case @ [n, h, w, input, output, kernel, stride] in CONVOLUTIONS {
        let leaves = [noise([n, h, w, input], 0), noise([output, input, kernel, kernel], 1)];
        check(
            &format!("convolution {case:?}"),
            leaves,
            |[x, weight]| super::convolution(x, weight, stride),
            |[x, weight]| twin::convolution(x, weight, stride),
        );
    }
}

#[test]
fn linear_layers_match_their_twin() {
    for case @ [n, input, output] in [[1, 1, 1], [3, 5, 7], [64, 130, 70], [9, 512, 256]] {
        let matrix = |x: Tensor<4>| x.flatten::<2>(0, 2);
        check(
            &format!("linear {case:?}"),
            [noise([n, 1, 1, input], 0), noise([output, 1, 1, input], 1)],
            |[x, weight]| super::linear(matrix(x), matrix(weight)).reshape([n, 1, 1, output]),
            |[x, weight]| twin::linear(matrix(x), matrix(weight)).reshape([n, 1, 1, output]),
        );
    }
}

#[test]
fn batch_norms_match_their_twin() {
    // Images, height, width, channels, groups.
    for case @ [n, h, w, channels, groups] in [
        [7, 1, 1, 1, 1],
        [4, 3, 3, 5, 2],
        [6, 5, 7, 16, 3],
        [2, 40, 30, 33, 1],
        [4, 23, 17, 64, 2],
        [64, 1, 1, 2048, 2],
    ] {
        let leaves =
            || [noise([n, h, w, channels], 0), noise([1, 1, 1, channels], 1), noise([1, 1, 1, channels], 2)];
        for rectify in [false, true] {
            let then = || if rectify { Then::Rectify } else { Then::Nothing };
            check(
                &format!("batch norm {case:?} rectify {rectify}"),
                leaves(),
                |[x, gamma, beta]| {
                    joined(super::batch_norm(x, flat(gamma), flat(beta), alone(groups), then()))
                },
                |[x, gamma, beta]| joined(twin::batch_norm(x, &flat(gamma), &flat(beta), groups, then())),
            );
        }
        let [x, gamma, beta] = leaves();
        let with_shortcut = [x, gamma, beta, noise([n, h, w, channels], 3)];
        check(
            &format!("batch norm with shortcut {case:?}"),
            with_shortcut,
            |[x, gamma, beta, shortcut]| {
                let then = Then::AddAndRectify(shortcut);
                joined(super::batch_norm(x, flat(gamma), flat(beta), alone(groups), then))
            },
            |[x, gamma, beta, shortcut]| {
                let then = Then::AddAndRectify(shortcut);
                joined(twin::batch_norm(x, &flat(gamma), &flat(beta), groups, then))
            },
        );
    }
}

#[test]
fn running_batch_norms_match_their_twin() {
    type Operation = fn(Tensor<4>, [Tensor<1>; 2], [Tensor<1>; 2], Then<4>) -> Tensor<4>;
    let evaluate = |operation: Operation, device: Device| {
        let image = |stream| Tensor::<4>::from_data(noise([2, 5, 3, 20], stream), &device);
        let vector =
            |stream| Tensor::<4>::from_data(noise([1, 1, 1, 20], stream), &device).flatten::<1>(0, 3);
        [Then::Nothing, Then::Rectify, Then::AddAndRectify(image(5))]
            .map(|then| operation(image(0), [vector(1), vector(2)], [vector(3), vector(4).square()], then))
    };
    let found = evaluate(super::batch_norm_running, device());
    for (found, expected) in found.into_iter().zip(evaluate(twin::batch_norm_running, Device::flex())) {
        assert_close("running", found, expected, TOLERANCE);
    }
}

#[test]
fn pools_match_their_twin() {
    for case in [[1, 1, 1, 1], [2, 5, 4, 3], [1, 8, 8, 64], [3, 9, 7, 17]] {
        check(&format!("pool {case:?}"), [noise(case, 0)], |[x]| super::max_pool(x), |[x]| twin::max_pool(x));
    }
}

#[test]
fn means_over_pixels_match_their_twin() {
    for case @ [n, _, _, channels] in [[1, 1, 1, 1], [2, 5, 4, 3], [3, 3, 3, 64]] {
        let matrix = |y: Tensor<2>| y.reshape([n, 1, 1, channels]);
        check(
            &format!("average pool {case:?}"),
            [noise(case, 0)],
            |[x]| matrix(super::average_pool(x)),
            |[x]| matrix(twin::average_pool(x)),
        );
    }
}

#[test]
fn cosines_match_their_twin() {
    // In one dimension a cosine has no gradient but for rounding.
    for case @ [n, d] in [[1, 2], [3, 5], [7, 300], [2, 2048]] {
        let rows = |x: Tensor<4>| x.cast(DType::F32).reshape([n, d]);
        let image = |y: Tensor<2>| y.reshape([n, 1, 1, 1]);
        check(
            &format!("cosine {case:?}"),
            [noise([n, 1, 1, d], 0), noise([n, 1, 1, d], 1)],
            |[p, z]| image(super::cosine(rows(p), rows(z))),
            |[p, z]| image(twin::cosine(rows(p), rows(z))),
        );
        let x = |device: &Device| Tensor::<4>::from_data(noise([n, 1, 1, d], 2), device).reshape([n, d]);
        let found = super::normalise(x(&device())).reshape([n, 1, 1, d]);
        let expected = twin::normalise(x(&Device::flex())).reshape([n, 1, 1, d]);
        assert_close("rows of length 1", found, expected, TOLERANCE);
    }
    // A row of zeros has a direction nowhere, and a gradient that is finite.
    let zeros = TensorData::new(vec![0.0f32; 8], [2, 1, 1, 4]);
    let cosine =
        |[p, z]: [Tensor<4>; 2]| super::cosine(p.reshape([2, 4]), z.reshape([2, 4])).reshape([2, 1, 1, 1]);
    for tensor in evaluate(&device(), DType::F32, [zeros, noise([2, 1, 1, 4], 1)], cosine) {
        assert!(tensor.into_data().try_into_vec::<f32>().unwrap().iter().all(|value| value.is_finite()));
    }
}

#[test]
fn vectors_are_gathered_whatever_their_length() {
    let vector = |length: usize, stream: u64, device: &Device| {
        Tensor::<4>::from_data(noise([1, 1, 1, length], stream), device).flatten::<1>(0, 3)
    };
    let gathered = |device: &Device| {
        let lengths = [64, 3, 1, 128, 70, 4].into_iter().cycle().take(71).enumerate();
        let parts = lengths.map(|(index, length)| match index % 3 {
            0 => Part::Views(vector(2 * length, index as u64, device)),
            _ => Part::Whole(vector(length, index as u64, device)),
        });
        super::gather(parts.collect(), 0.9, 5)
    };
    let (found, expected) = (gathered(&device()), gathered(&Device::flex()));
    let length = expected.dims()[0];
    let image = |values: Tensor<1>| values.reshape([1, 1, 1, length]);
    let same = |found: Tensor<1>, expected: Tensor<1>| {
        assert_close("gathered", image(found), image(expected), TOLERANCE);
    };
    same(found.clone(), expected.clone());
    let total = |values: Tensor<1>| super::square_sums(values, length - 7).sum().expand([length]);
    same(total(found.clone()), total(expected.clone()));
    for range in [0..length, 64..131, 67..68] {
        let widened = |values: Tensor<1>| values.sum().expand([length]);
        same(
            widened(super::stretch(found.clone(), range.clone())),
            widened(super::stretch(expected.clone(), range)),
        );
    }
}

#[test]
fn a_network_has_the_same_bits_on_any_number_of_threads() {
    let results = [1, 2, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let leaves = [
                noise([6, 21, 19, 3], 0),
                noise([64, 3, 7, 7], 1),
                noise([1, 1, 1, 64], 2),
                noise([72, 64, 3, 3], 3),
                noise([1, 1, 1, 72], 4),
            ];
            evaluate(&Device::flex(), DType::F32, leaves, |[x, stem, gamma, weight, gamma2]| {
                let beta = |gamma: &Tensor<1>| gamma.clone() * 0.1;
                let x = super::convolution(x, stem, 2);
                let gamma = flat(gamma);
                let x = super::batch_norm(x, gamma.clone(), beta(&gamma), alone(2), Then::Rectify).output;
                let x = super::convolution(super::max_pool(x), weight, 2);
                let gamma = flat(gamma2);
                let shortcut = Then::AddAndRectify(x.clone() * 0.5);
                joined(super::batch_norm(x, gamma.clone(), beta(&gamma), alone(2), shortcut))
            })
            .into_iter()
            .map(|tensor| {
                tensor.into_data().try_into_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
            })
            .collect()
        })
    });
    let [one, two, three]: [Vec<Vec<u32>>; 3] = results;
    assert!(one == two && two == three);
}

#[test]
fn what_is_not_a_number_stays_so() {
    let device = device();
    let x = Tensor::<4>::full([1, 3, 3, 2], f32::NAN, &device);
    let ones = || Tensor::<1>::ones([2], &device);
    for y in [
        super::max_pool(x.clone()),
        super::batch_norm(x.clone(), ones(), ones(), alone(1), Then::Rectify).output,
        super::batch_norm_running(x.clone(), [ones(), ones()], [ones(), ones()], Then::AddAndRectify(x)),
    ] {
        assert!(y.into_data().try_into_vec::<f32>().unwrap().iter().all(|value| value.is_nan()));
    }
}

/// Output, statistics and through them all gradients, as one tensor.
fn joined(normalised: Normalised<4>) -> Tensor<4> {
    let Normalised { output, mean, variance } = normalised;
    let [n, h, w, c] = output.dims();
    // Statistics carry no gradient in the kernels: the twin's must not either.
    let statistics = (mean.sum() + variance.sum()).detach().reshape([1, 1, 1, 1]);
    let dtype = output.dtype();
    output + (statistics.expand([n, h, w, c]) * 1e-3).cast(dtype)
}

fn flat(x: Tensor<4>) -> Tensor<1> {
    x.flatten(0, 3)
}

fn noise(shape: [usize; 4], stream: u64) -> TensorData {
    let mut draws = Draws::new(7, Purpose::Weights, 0, stream, 0);
    // Numbers that bf16 has too: what is greatest among them is so in every precision.
    let mut number = || half::bf16::from_f32(draws.normal()).to_f32();
    TensorData::new((0..shape.iter().product()).map(|_| number()).collect::<Vec<f32>>(), shape)
}

/// The output, then the gradient of every leaf. The first leaf and the fourth, a shortcut, are activations of this
/// type.
fn evaluate<const N: usize>(
    device: &Device,
    activations: DType,
    leaves: [TensorData; N],
    operation: impl Fn([Tensor<4>; N]) -> Tensor<4>,
) -> Vec<Tensor<4>> {
    let device = device.clone().autodiff();
    let leaves = leaves.map(|data| Tensor::<4>::from_data(data, &device).require_grad());
    let mut operands = leaves.clone();
    for index in [0, 3] {
        if let (Some(operand), true) = (operands.get_mut(index), activations != DType::F32) {
            *operand = operand.clone().cast(activations);
        }
    }
    let y = operation(operands).cast(DType::F32);
    let dy = Tensor::from_data(noise(y.dims(), 9), &device);
    let gradients = (y.clone() * dy).sum().backward();
    let of_leaves = leaves.iter().map(|leaf| leaf.grad(&gradients).expect("every leaf takes part"));
    std::iter::once(y.inner()).chain(of_leaves).collect()
}

fn check<const N: usize>(
    name: &str,
    leaves: [TensorData; N],
    kernel: impl Fn([Tensor<4>; N]) -> Tensor<4>,
    twin: impl Fn([Tensor<4>; N]) -> Tensor<4>,
) {
    let expected = evaluate(&Device::flex(), DType::F32, leaves.clone(), twin);
    let compare = |device: &Device, dtype: DType, leaves: [TensorData; N], tolerance: f64| {
        let found = evaluate(device, dtype, leaves, &kernel);
        for (index, (found, expected)) in found.into_iter().zip(&expected).enumerate() {
            let what = if index == 0 { "output".into() } else { format!("gradient {}", index - 1) };
            assert_close(&format!("{name} in {dtype:?}, {what}"), found, expected.clone(), tolerance);
        }
    };
    let device = device();
    if !is_flex(&device) {
        compare(&device, DType::BF16, leaves.clone(), BF16_TOLERANCE);
    }
    compare(&device, DType::F32, leaves, TOLERANCE);
}

fn assert_close(name: &str, found: Tensor<4>, expected: Tensor<4>, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let values = |tensor: Tensor<4>| tensor.into_data().try_into_vec::<f32>().unwrap();
    let (found, expected) = (values(found), values(expected));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(&expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = norm(&mut expected.iter().map(|b| f64::from(*b)));
    assert!(
        difference <= tolerance * size.max(1e-3),
        "{name}: off by {:.2e} of {size:.3e}",
        difference / size
    );
}
