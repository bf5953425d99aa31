//! Registers' worth of weights: how wide panels and tiles are, and how they are loaded and stored.

use pulp::{Arch, Simd, WithSimd};

/// Output pixels (forward) or input channels (weight gradient) of a tile: times [`vectors`], plus one row of
/// weights, they fill the registers of AVX-512 and NEON.
pub(super) const TILE: usize = 6;

/// Numbers of a row that are transposed at once: long enough a stretch for the hardware to read ahead.
pub(super) const TRANSPOSED: usize = 64;

/// The widest panel: four vectors of AVX-512.
pub(super) const MOST_WIDTH: usize = 64;

/// Vectors side by side in a panel of weights. With [`TILE`] rows they fill 32 registers of 16 lanes or 16
/// registers of 8; NEON has 32 of 4.
const fn vectors<S: Simd>() -> usize {
    if S::F32_LANES == 8 { 2 } else { 4 }
}

/// Numbers side by side in a panel.
pub(super) fn panel_width() -> usize {
    struct Width;
    impl WithSimd for Width {
        type Output = usize;
        fn with_simd<S: Simd>(self, _: S) -> usize {
            vectors::<S>() * S::F32_LANES
        }
    }
    Arch::new().dispatch(Width)
}

/// Vectors from the start of `values`; missing numbers are 0.
#[inline(always)]
pub(super) fn load<S: Simd, const VECTORS: usize, const WHOLE: bool>(
    simd: S,
    values: &[f32],
) -> [S::f32s; VECTORS] {
    let mut loaded = [simd.splat_f32s(0.0); VECTORS];
    if WHOLE {
        loaded.copy_from_slice(&S::as_simd_f32s(values).0[..VECTORS]);
    } else {
        for (vector, values) in loaded.iter_mut().zip(values.chunks(S::F32_LANES)) {
            *vector = simd.partial_load_f32s(values);
        }
    }
    loaded
}

/// The way back; what does not fit is dropped.
#[inline(always)]
pub(super) fn store<S: Simd, const VECTORS: usize, const WHOLE: bool>(
    simd: S,
    vectors: [S::f32s; VECTORS],
    values: &mut [f32],
) {
    if WHOLE {
        S::as_mut_simd_f32s(values).0[..VECTORS].copy_from_slice(&vectors);
    } else {
        for (vector, values) in vectors.into_iter().zip(values.chunks_mut(S::F32_LANES)) {
            simd.partial_store_f32s(values, vector);
        }
    }
}
