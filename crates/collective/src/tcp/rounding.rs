//! Floats as bf16: the upper half of an `f32`, which keeps its range and 8 of its 24 bits.

/// Rounds `values` to the nearest, ties to even. What is not a number stays so.
pub(super) fn round(values: &[f32], into: &mut [u16]) {
    for (value, rounded) in values.iter().zip(into) {
        let bits = value.to_bits();
        let upper = bits >> 16;
        let nearest = bits.wrapping_add(0x7fff + (upper & 1)) >> 16;
        // A quiet one, as rounding might make an infinity of it, or carry into the sign.
        *rounded = if value.is_nan() { upper | 0x40 } else { nearest } as u16;
    }
}

/// What the rounded values stand for.
pub(super) fn widen(rounded: &[u16], into: &mut [f32]) {
    for (rounded, value) in rounded.iter().zip(into) {
        *value = f32::from_bits(u32::from(*rounded) << 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    fn check(values: &[f32]) {
        let mut rounded = vec![0; values.len()];
        round(values, &mut rounded);
        let mut widened = vec![0.0; values.len()];
        widen(&rounded, &mut widened);
        for ((value, rounded), widened) in values.iter().zip(rounded).zip(widened) {
            let expected = bf16::from_f32(*value);
            assert_eq!(rounded, expected.to_bits(), "{value:e}");
            assert_eq!(widened.to_bits(), expected.to_f32().to_bits(), "{value:e}");
        }
    }

    #[test]
    fn rounding_is_that_of_every_bf16() {
        // Between each two neighbours: just above the lower, the tie, just below the upper.
        let around = |upper: u32| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|lower| upper << 16 | lower);
        let values: Vec<f32> = (0..=0xffff).flat_map(around).map(f32::from_bits).collect();
        check(&values);
    }

    proptest! {
        #[test]
        fn any_floats_are_rounded_as_others_do(bits in proptest::collection::vec(any::<u32>(), 0..100)) {
            check(&bits.into_iter().map(f32::from_bits).collect::<Vec<_>>());
        }
    }
}
