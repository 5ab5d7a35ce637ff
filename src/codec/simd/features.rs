//! The CPU features that the kernels of an instruction set use. Each list exists once: detection
//! and the code compiled for it cannot disagree.
#![allow(unsafe_code)]

use crate::codec::{
    ChunkError, EntropyModel,
    decode::{decode_delta, decode_planes},
    encode::Encoder,
};

/// Declares a type whose values prove that the CPU has these features.
macro_rules! cpu_features {
    ($(#[$doc:meta])* $name:ident, $detected:ident: $($feature:tt),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name(());

        impl $name {
            /// The features, for the test below.
            #[cfg(test)]
            const FEATURES: &[&str] = &[$($feature),+];

            /// A proof, or `None` if the CPU lacks a feature.
            pub(super) fn detect() -> Option<Self> {
                let present = $(std::arch::$detected!($feature))&&+;
                present.then_some(Self(()))
            }

            /// The decoding pipeline compiled with these features, which its unpacking and merging
            /// loops profit from.
            #[target_feature($(enable = $feature),+)]
            pub(super) fn run_pipeline(
                self,
                model: &EntropyModel,
                payload: &[u8],
                out: &mut [u8],
            ) -> Result<(), ChunkError> {
                decode_planes(self, model, payload, out)
            }

            /// The decoding of differences compiled with these features.
            #[target_feature($(enable = $feature),+)]
            pub(super) fn run_delta(
                self,
                model: &EntropyModel,
                payload: &[u8],
                out: &mut [u8],
            ) -> Result<(), ChunkError> {
                decode_delta(self, model, payload, out)
            }

            /// The encoding pipeline compiled with these features.
            #[target_feature($(enable = $feature),+)]
            pub(super) fn run_encoder(
                self,
                encoder: &Encoder<'_>,
                chunk: &[u8],
            ) -> Option<Vec<u8>> {
                encoder.encode_planes(chunk)
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
cpu_features! {
    /// Proof that the CPU has AVX2.
    Avx2, is_x86_feature_detected: "avx2", "popcnt"
}

#[cfg(target_arch = "x86_64")]
cpu_features! {
    /// Proof that the CPU has AVX-512 with VBMI and VBMI2.
    Avx512, is_x86_feature_detected:
    "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vbmi", "avx512vbmi2", "popcnt"
}

#[cfg(target_arch = "aarch64")]
cpu_features! {
    /// Proof that the CPU has NEON.
    Neon, is_aarch64_feature_detected: "neon"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The features that the functions of a source file enable.
    fn enabled(source: &str) -> impl Iterator<Item = &str> {
        source
            .lines()
            .filter_map(|line| {
                line.trim().strip_prefix("#[target_feature(enable = \"")?.split('"').next()
            })
            .flat_map(|features| features.split(','))
    }

    fn assert_enables_only(detected: &[&str], sources: &[&str]) {
        for source in sources {
            assert!(enabled(source).count() > 0, "a file without kernels");
            assert!(enabled(source).all(|feature| detected.contains(&feature)));
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn functions_enable_no_feature_that_is_not_detected() {
        let avx2 = [
            include_str!("avx2/mod.rs"),
            include_str!("avx2/classes.rs"),
            include_str!("avx2/lookup.rs"),
            include_str!("avx2/refill.rs"),
            include_str!("avx2/rounds.rs"),
            include_str!("avx2/spread.rs"),
            include_str!("avx2/unpack.rs"),
            include_str!("avx2/values.rs"),
        ];
        let avx512 = [
            include_str!("avx512/mod.rs"),
            include_str!("avx512/changes.rs"),
            include_str!("avx512/encode.rs"),
            include_str!("avx512/rounds.rs"),
            include_str!("avx512/spread.rs"),
            include_str!("avx512/unpack.rs"),
        ];
        assert_enables_only(Avx2::FEATURES, &avx2);
        assert_enables_only(Avx512::FEATURES, &avx512);
    }

    #[test]
    #[cfg(target_arch = "aarch64")]
    fn functions_enable_no_feature_that_is_not_detected() {
        let neon = [
            include_str!("neon/mod.rs"),
            include_str!("neon/rounds.rs"),
            include_str!("neon/spread.rs"),
            include_str!("neon/unpack.rs"),
        ];
        assert_enables_only(Neon::FEATURES, &neon);
    }
}
