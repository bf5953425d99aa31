//! Minimising a smooth convex function: L-BFGS (Nocedal 1980; Nocedal and Wright 2006, algorithm 7.5).

use std::collections::VecDeque;

/// Steps remembered; more than 20 rarely help (Nocedal and Wright 2006, page 179).
const MEMORY: usize = 20;

/// The share of the promised decrease that a step must bring (Armijo 1966): PyTorch's and SciPy's value.
const SUFFICIENT_DECREASE: f64 = 1e-4;

/// 30 halvings reach a billionth of a step: beyond it, rounding is all that is left.
const MOST_HALVINGS: usize = 30;

/// Where the descent ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ending {
    /// The function's value.
    pub(crate) value: f64,
    /// Steps taken.
    pub(crate) iterations: usize,
    /// Whether the gradient is as small as asked for.
    pub(crate) converged: bool,
}

/// Moves `x` to the minimum: until no component of the gradient exceeds `tolerance`, for at most
/// `most_iterations` steps. `evaluate` writes the gradient at a point and returns the value.
pub(crate) fn minimize(
    x: &mut [f64],
    tolerance: f64,
    most_iterations: usize,
    mut evaluate: impl FnMut(&[f64], &mut [f64]) -> f64,
) -> Ending {
    let mut gradient = vec![0.0; x.len()];
    let mut value = evaluate(x, &mut gradient);
    let mut history = History::default();
    let (mut next, mut next_gradient) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    for iterations in 0..=most_iterations {
        let converged = gradient.iter().all(|component| component.abs() <= tolerance);
        if converged || iterations == most_iterations {
            return Ending { value, iterations, converged };
        }
        let direction = history.direction(&gradient);
        let slope = dot(&direction, &gradient);
        // Nothing is known of the scale at first, so that step is at most of length 1.
        let mut step =
            if history.pairs.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt().max(1.0) } else { 1.0 };
        let mut halvings = 0;
        let next_value = loop {
            for ((next, x), direction) in next.iter_mut().zip(&*x).zip(&direction) {
                *next = x + step * direction;
            }
            let next_value = evaluate(&next, &mut next_gradient);
            if next_value <= value + SUFFICIENT_DECREASE * step * slope {
                break next_value;
            }
            if halvings == MOST_HALVINGS {
                return Ending { value, iterations, converged: false };
            }
            (step, halvings) = (step / 2.0, halvings + 1);
        };
        history.remember(x, &next, &gradient, &next_gradient);
        x.copy_from_slice(&next);
        std::mem::swap(&mut gradient, &mut next_gradient);
        value = next_value;
    }
    unreachable!("the last iteration returns")
}

/// The last steps, which stand for the inverse of the Hessian.
#[derive(Default)]
struct History {
    pairs: VecDeque<Pair>,
}

/// A step `s`, the change `y` of the gradient along it, and `1 / (s · y)`.
struct Pair {
    s: Vec<f64>,
    y: Vec<f64>,
    rho: f64,
}

impl History {
    fn remember(&mut self, x: &[f64], next: &[f64], gradient: &[f64], next_gradient: &[f64]) {
        let difference = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a - b).collect() };
        let (s, y) = (difference(next, x), difference(next_gradient, gradient));
        let curvature = dot(&s, &y);
        // On a convex function it is positive, but for rounding when the step is tiny.
        if curvature > f64::EPSILON * dot(&y, &y) {
            if self.pairs.len() == MEMORY {
                self.pairs.pop_front();
            }
            self.pairs.push_back(Pair { s, y, rho: 1.0 / curvature });
        }
    }

    /// Where to go: minus the inverse Hessian times the gradient, by the two-loop recursion (algorithm 7.4).
    fn direction(&self, gradient: &[f64]) -> Vec<f64> {
        let mut q: Vec<f64> = gradient.iter().map(|component| -component).collect();
        let mut alphas = Vec::with_capacity(self.pairs.len());
        for Pair { s, y, rho } in self.pairs.iter().rev() {
            let alpha = rho * dot(s, &q);
            add(&mut q, -alpha, y);
            alphas.push(alpha);
        }
        if let Some(Pair { y, rho, .. }) = self.pairs.back() {
            let scale = 1.0 / (rho * dot(y, y));
            q.iter_mut().for_each(|component| *component *= scale);
        }
        for (Pair { s, y, rho }, alpha) in self.pairs.iter().zip(alphas.into_iter().rev()) {
            let beta = rho * dot(y, &q);
            add(&mut q, alpha - beta, s);
        }
        q
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], scale: f64, what: &[f64]) {
    for (to, what) in to.iter_mut().zip(what) {
        *to += scale * what;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each: a convex function, its gradient, where to start, and its minimum.
    #[test]
    fn minima_are_found() {
        type Function = fn(&[f64], &mut [f64]) -> f64;
        let functions: [(&str, Function, Vec<f64>, Vec<f64>); 3] = [
            (
                "an ill-conditioned bowl",
                |x, gradient| {
                    let curvature = |place: usize| 10f64.powi(place as i32 - 2);
                    for (place, x) in x.iter().enumerate() {
                        gradient[place] = curvature(place) * (x - 3.0);
                    }
                    x.iter().enumerate().map(|(place, x)| curvature(place) * (x - 3.0).powi(2) / 2.0).sum()
                },
                vec![0.0; 6],
                vec![3.0; 6],
            ),
            (
                "a quartic, flat at its minimum",
                |x, gradient| {
                    gradient[0] = 4.0 * (x[0] - 1.0).powi(3);
                    gradient[1] = 2.0 * (x[1] + 2.0);
                    (x[0] - 1.0).powi(4) + (x[1] + 2.0).powi(2)
                },
                vec![9.0, -9.0],
                vec![1.0, -2.0],
            ),
            (
                "one already at its minimum",
                |x, gradient| {
                    gradient[0] = x[0];
                    x[0] * x[0] / 2.0
                },
                vec![0.0],
                vec![0.0],
            ),
        ];
        for (name, function, mut x, expected) in functions {
            let ending = minimize(&mut x, 1e-9, 200, function);
            assert!(ending.converged, "{name}: {ending:?}");
            for (x, expected) in x.iter().zip(&expected) {
                assert!((x - expected).abs() < 1e-3, "{name}: {x} is not {expected}");
            }
        }
    }

    #[test]
    fn a_descent_without_end_ends() {
        let ending = minimize(&mut [0.0], 1e-9, 10, |x, gradient| {
            gradient[0] = 1.0;
            x[0]
        });
        assert_eq!((ending.converged, ending.iterations), (false, 10));
    }
}
