//! For every line with a directory on standard input, maps its .safetensors files with candle,
//! creates every tensor, and prints a line of JSON: the seconds taken, and the SHA-256 of all names
//! and bytes. `../run.py` drives it.

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Result, Tensor};
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Every tensor of the directory's files, sorted by name.
fn load(directory: &Path) -> Result<Vec<(String, Tensor)>> {
    let entries = std::fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    let files: Vec<PathBuf> = entries.into_iter().map(|e| e.path()).collect();
    let files = files.into_iter().filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
    // SAFETY: nothing changes these files while they are mapped.
    let mapped = unsafe { MmapedSafetensors::multi(&files.collect::<Vec<_>>())? };
    let names = mapped.tensors().into_iter().map(|(name, _)| name);
    let mut tensors = names
        .map(|name| Ok((name.clone(), mapped.load(&name, &Device::Cpu)?)))
        .collect::<Result<Vec<_>>>()?;
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(tensors)
}

fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::BF16 => flat.to_vec1::<half::bf16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => flat.to_vec1::<half::f16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F32 => flat.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::I64 => flat.to_vec1::<i64>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        other => candle_core::bail!("{other:?} is not among the types tried here"),
    })
}

fn main() -> Result<()> {
    for line in io::stdin().lines() {
        let begun = Instant::now();
        let tensors = load(Path::new(&line?))?;
        let seconds = begun.elapsed().as_secs_f64();
        let mut hash = Sha256::new();
        for (name, tensor) in &tensors {
            hash.update(name);
            hash.update(bytes(tensor)?);
        }
        let digest: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        println!(r#"{{"seconds": {seconds}, "digest": "{digest}", "version": "candle-core"}}"#);
        io::stdout().flush()?;
    }
    Ok(())
}
