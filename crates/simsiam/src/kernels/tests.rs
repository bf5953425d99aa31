//! Kernels against their twins, forward and every gradient, and the same bits from any number of threads.

use burn::tensor::{Device, Tensor, TensorData};
use recipe::{Draws, Purpose};

use super::{Normalised, Then, twin};

/// Relative to the tensor's norm: sums of some hundred products in f32, in another order.
const TOLERANCE: f64 = 2e-5;

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
                |[x, gamma, beta]| joined(super::batch_norm(x, flat(gamma), flat(beta), groups, then())),
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
                joined(super::batch_norm(x, flat(gamma), flat(beta), groups, then))
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
    let device = Device::flex();
    let x = || Tensor::<4>::from_data(noise([2, 5, 3, 20], 0), &device);
    let shortcut = || Tensor::<4>::from_data(noise([2, 5, 3, 20], 5), &device);
    let vector = |stream| Tensor::<4>::from_data(noise([1, 1, 1, 20], stream), &device).flatten::<1>(0, 3);
    let (affine, statistics) = (|| [vector(1), vector(2)], || [vector(3), vector(4).square()]);
    for rectify in [false, true] {
        let then = || if rectify { Then::Rectify } else { Then::Nothing };
        let found = super::batch_norm_running(x(), affine(), statistics(), then());
        assert_close("running", found, twin::batch_norm_running(x(), affine(), statistics(), then()));
    }
    let found = super::batch_norm_running(x(), affine(), statistics(), Then::AddAndRectify(shortcut()));
    let then = Then::AddAndRectify(shortcut());
    assert_close("running", found, twin::batch_norm_running(x(), affine(), statistics(), then));
}

#[test]
fn pools_match_their_twin() {
    for case in [[1, 1, 1, 1], [2, 5, 4, 3], [1, 8, 8, 64], [3, 9, 7, 17]] {
        check(&format!("pool {case:?}"), [noise(case, 0)], |[x]| super::max_pool(x), |[x]| twin::max_pool(x));
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
            evaluate(leaves, |[x, stem, gamma, weight, gamma2]| {
                let beta = |gamma: &Tensor<1>| gamma.clone() * 0.1;
                let x = super::convolution(x, stem, 2);
                let gamma = flat(gamma);
                let x = super::batch_norm(x, gamma.clone(), beta(&gamma), 2, Then::Rectify).output;
                let x = super::convolution(super::max_pool(x), weight, 2);
                let gamma = flat(gamma2);
                let shortcut = Then::AddAndRectify(x.clone() * 0.5);
                joined(super::batch_norm(x, gamma.clone(), beta(&gamma), 2, shortcut))
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
    let device = Device::flex();
    let x = Tensor::<4>::full([1, 3, 3, 2], f32::NAN, &device);
    let ones = || Tensor::<1>::ones([2], &device);
    for y in [
        super::max_pool(x.clone()),
        super::batch_norm(x.clone(), ones(), ones(), 1, Then::Rectify).output,
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
    output + statistics.expand([n, h, w, c]) * 1e-3
}

fn flat(x: Tensor<4>) -> Tensor<1> {
    x.flatten(0, 3)
}

fn noise(shape: [usize; 4], stream: u64) -> TensorData {
    let mut draws = Draws::new(7, Purpose::Weights, 0, stream, 0);
    TensorData::new((0..shape.iter().product()).map(|_| draws.normal()).collect::<Vec<f32>>(), shape)
}

/// The output, then the gradient of every leaf.
fn evaluate<const N: usize>(
    leaves: [TensorData; N],
    operation: impl Fn([Tensor<4>; N]) -> Tensor<4>,
) -> Vec<Tensor<4>> {
    let device = Device::flex().autodiff();
    let leaves = leaves.map(|data| Tensor::<4>::from_data(data, &device).require_grad());
    let y = operation(leaves.clone());
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
    let (found, expected) = (evaluate(leaves.clone(), kernel), evaluate(leaves, twin));
    for (index, (found, expected)) in found.into_iter().zip(expected).enumerate() {
        let what = if index == 0 { "output".into() } else { format!("gradient {}", index - 1) };
        assert_close(&format!("{name}, {what}"), found, expected);
    }
}

fn assert_close(name: &str, found: Tensor<4>, expected: Tensor<4>) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let values = |tensor: Tensor<4>| tensor.into_data().try_into_vec::<f32>().unwrap();
    let (found, expected) = (values(found), values(expected));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(&expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = norm(&mut expected.iter().map(|b| f64::from(*b)));
    assert!(
        difference <= TOLERANCE * size.max(1e-3),
        "{name}: off by {:.2e} of {size:.3e}",
        difference / size
    );
}
