//! The decoding kernels: what those of all instruction sets share.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use super::{
    avx2, avx512,
    features::{Avx2, Avx512},
};
#[cfg(target_arch = "aarch64")]
use super::{features::Neon, neon};
#[cfg(target_arch = "x86_64")]
use crate::codec::decode::Changes;
use crate::codec::{
    ChunkError, EntropyModel, LANES,
    decode::{Kernel, RoundTables, Rounds, Stream},
    encode::{EncodeKernel, Encoder, scalar_costs, scalar_rounds},
    planes::GROUP,
};

/// Makes the inner loops of an instruction set, `$module`, a [`Kernel`].
macro_rules! simd_kernel {
    ($features:ident, $name:literal, $module:ident, $($changes:ident)?) => {
        impl Kernel for $features {
            const NAME: &'static str = $name;

            fn decode_planes(
                self,
                model: &EntropyModel,
                payload: &[u8],
                out: &mut [u8],
            ) -> Result<(), ChunkError> {
                // SAFETY: `self` proves that the CPU has the features.
                unsafe { self.run_pipeline(model, payload, out) }
            }

            fn decode_delta(
                self,
                model: &EntropyModel,
                payload: &[u8],
                out: &mut [u8],
            ) -> Result<(), ChunkError> {
                // SAFETY: as above.
                unsafe { self.run_delta(model, payload, out) }
            }

            #[inline(always)]
            fn symbols(
                self,
                stream: &mut Stream<'_>,
                mut tables: RoundTables<'_>,
                mut out: Rounds<'_>,
            ) -> Result<(), ChunkError> {
                // SAFETY: as above.
                let done = unsafe { $module::decode_rounds(stream, &mut tables, &mut out) };
                let out = out.after(done);
                if out.symbols.is_empty() {
                    return Ok(());
                }
                // The last rounds may read beyond the words that are there.
                decode_last(stream, tables, out, |stream, tables, out| {
                    // SAFETY: as above.
                    unsafe { $module::decode_rounds(stream, tables, out) }
                })
            }

            #[inline(always)]
            fn unpack(self, packed: &[u8], bits: u8, shift: u8, keep: bool, bytes: &mut [u8]) {
                // SAFETY: as above.
                unsafe {
                    match bits {
                        1 => $module::unpack::<1>(packed, shift, keep, bytes),
                        2 => $module::unpack::<2>(packed, shift, keep, bytes),
                        3 => $module::unpack::<3>(packed, shift, keep, bytes),
                        4 => $module::unpack::<4>(packed, shift, keep, bytes),
                        5 => $module::unpack::<5>(packed, shift, keep, bytes),
                        6 => $module::unpack::<6>(packed, shift, keep, bytes),
                        7 => $module::unpack::<7>(packed, shift, keep, bytes),
                        _ => $module::unpack::<8>(packed, shift, keep, bytes),
                    }
                }
            }

            #[inline(always)]
            fn spread(self, values: &[u8; GROUP], members: u64) -> [u8; GROUP] {
                // SAFETY: as above.
                unsafe { $module::spread(values, members) }
            }

            $($changes!($module);)?
        }
    };
}

/// What changes elements, if a kernel does not leave it to the compiler.
#[cfg(target_arch = "x86_64")]
macro_rules! changes {
    ($module:ident) => {
        changes! { $module 2 u16 classes16 change16 }
        changes! { $module 4 u32 classes32 change32 }
    };
    ($module:ident $width:literal $element:ident $classes:ident $change:ident) => {
        #[inline(always)]
        fn $classes(
            self,
            base: &[u8; $width * GROUP],
            threshold: $element,
            classes: &mut [u8; GROUP],
        ) -> u64 {
            // SAFETY: as above.
            unsafe { $module::$classes(base, threshold, classes) }
        }

        #[inline(always)]
        fn $change<const BYTES: usize>(
            self,
            out: &mut [u8; $width * GROUP],
            changes: &Changes<'_, $element, BYTES>,
        ) {
            // SAFETY: as above.
            unsafe { $module::$change(out, changes) }
        }
    };
}

#[cfg(target_arch = "x86_64")]
simd_kernel!(Avx2, "avx2", avx2,);
#[cfg(target_arch = "x86_64")]
simd_kernel!(Avx512, "avx512", avx512, changes);
#[cfg(target_arch = "aarch64")]
simd_kernel!(Neon, "neon", neon,);

/// The most bytes that the `decode_rounds` of any instruction set reads in a round, and the fewest
/// with which it decodes one.
const REACH: usize = 2 * LANES;

/// Decodes the rounds for which fewer than [`REACH`] bytes of words are left.
///
/// # Errors
/// [`ChunkError::Truncated`] if they take more.
fn decode_last(
    stream: &mut Stream<'_>,
    mut tables: RoundTables<'_>,
    mut out: Rounds<'_>,
    decode_rounds: impl Fn(&mut Stream<'_>, &mut RoundTables<'_>, &mut Rounds<'_>) -> usize,
) -> Result<(), ChunkError> {
    let mut padded = [0; 2 * REACH];
    let Some(words) = padded.get_mut(..stream.words.len()) else {
        return Err(ChunkError::Truncated);
    };
    words.copy_from_slice(stream.words);
    let mut last = Stream { states: stream.states, words: &padded };
    // Stops when fewer bytes are left than the padding has.
    decode_rounds(&mut last, &mut tables, &mut out);
    let taken = padded.len() - last.words.len();
    stream.words = stream.words.get(taken..).ok_or(ChunkError::Truncated)?;
    stream.states = last.states;
    Ok(())
}

/// The encoder's pipeline for an instruction set.
#[cfg(target_arch = "x86_64")]
macro_rules! encode_planes {
    ($features:ident) => {
        |encoder: &Encoder<'_>, chunk: &[u8]| {
            let features = $features::detect();
            let features = features.unwrap_or_else(|| unreachable!("chosen only where it can run"));
            // SAFETY: `features` proves that the CPU has the features.
            unsafe { features.run_encoder(encoder, chunk) }
        }
    };
}

/// The encoder with AVX-512.
#[cfg(target_arch = "x86_64")]
pub(super) const AVX512: EncodeKernel = EncodeKernel {
    planes: encode_planes!(Avx512),
    rounds: avx512::encode_rounds,
    costs: avx512::costs,
};
/// The encoder with AVX2, which does not speed up the states.
#[cfg(target_arch = "x86_64")]
pub(super) const AVX2: EncodeKernel =
    EncodeKernel { planes: encode_planes!(Avx2), rounds: scalar_rounds, costs: scalar_costs };
