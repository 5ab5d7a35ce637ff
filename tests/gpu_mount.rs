//! Mounts whose layers a GPU decodes ahead stay correct whatever the GPU does: a stand-in for the
//! driver (`tests/gpu/driver.cpp`) fails and hangs.

#![cfg(feature = "cuda")]

mod common;

#[path = "gpu/fake.rs"]
#[expect(dead_code, reason = "mounts are processes of their own")]
mod fake;

use common::mounts::{Mount, Rig, bsz, mount_test, wait_for};
use common::samples::{Fill, matrices, tensor};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Layers of the model, and bytes of each.
const LAYERS: usize = 14;
const LAYER: usize = 1 << 20;

/// Two packed models of one shard, and their original.
fn model(rig: &Rig) -> (PathBuf, Vec<u8>) {
    let (plain, packed) = (rig.mkdir("plain"), rig.path("packed"));
    let names: Vec<_> = (0..LAYERS).map(|i| format!("model.layers.{i}.weight")).collect();
    let layer = |i: usize| tensor("BF16", LAYER, Fill::Weights, i as u64);
    let tensors: Vec<_> =
        names.iter().enumerate().map(|(i, name)| (&name[..], "BF16", None, layer(i))).collect();
    let bytes = matrices(&tensors);
    for name in ["model.safetensors", "second.safetensors"] {
        std::fs::write(plain.join(name), &bytes).expect("written");
    }
    bsz([Path::new("pack"), &plain, Path::new("-o"), &packed]);
    (packed, bytes)
}

/// Read the layers one by one, with pauses, and compare them with the original.
fn read_layers(mount: &Mount, name: &str, expected: &[u8]) {
    let file = File::open(mount.path(name)).expect("opens");
    let begin = 8 + u64::from_le_bytes(expected[..8].try_into().expect("eight bytes")) as usize;
    for layer in 0..LAYERS {
        let at = begin + layer * LAYER;
        let mut out = vec![0; LAYER];
        file.read_exact_at(&mut out, at as u64).expect("read");
        assert!(out == expected[at..][..LAYER], "layer {layer} differs");
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Mount with the stand-in driver and this variable.
fn mounted(rig: &Rig, packed: &Path, name: &str, prefetch: &str, variable: (&str, &str)) -> Mount {
    let library = fake::driver().expect("built");
    let args = ["--cache-size", "512MiB", "--prefetch", prefetch, "--gpu-memory", "40MiB"];
    let environment = [
        ("LD_LIBRARY_PATH", library),
        (variable.0, Path::new(variable.1)),
        ("BSZ_LOG", Path::new("info,bszfs::readahead=debug")),
    ];
    rig.mount_with(packed, name, &args, &environment)
}

/// A mount whose driver behaves like this shows the right bytes, and its log says this.
fn outlives(variable: (&'static str, &'static str), said: &'static str) {
    mount_test(move |rig| {
        if fake::driver().is_none() {
            return;
        }
        let (packed, bytes) = model(rig);
        let mount = mounted(rig, &packed, "view", "cuda", variable);
        read_layers(&mount, "model.safetensors", &bytes);
        wait_for(&format!("{variable:?}: {said:?} in the log"), || mount.log().contains(said));
    });
}

#[test]
fn a_mount_outlives_a_gpu_that_hangs_while_it_is_opened() {
    outlives(("BSZ_FAKE_HANG", "cuInit:1"), "the driver does not respond");
}

#[test]
fn a_mount_outlives_a_gpu_that_hangs_while_it_gets_ready() {
    // No chunk is claimed, so that nothing need be taken back.
    outlives(("BSZ_FAKE_HANG", "cuMemHostAlloc:1"), "");
}

#[test]
fn a_mount_outlives_a_gpu_that_hangs_while_it_decodes() {
    // The four before clear the memory of the slots.
    outlives(("BSZ_FAKE_HANG", "cuStreamSynchronize:5"), "does not respond");
}

#[test]
fn a_mount_outlives_a_gpu_that_hangs_when_a_kernel_is_launched() {
    outlives(("BSZ_FAKE_HANG", "cuLaunchKernel:1"), "does not respond");
}

#[test]
fn a_mount_outlives_a_gpu_that_fails_while_it_is_opened() {
    outlives(("BSZ_FAKE_FAIL", "cuModuleLoadData:1"), "CUDA: cannot load the kernels");
}

#[test]
fn a_mount_outlives_a_gpu_that_fails_while_it_gets_ready() {
    outlives(("BSZ_FAKE_FAIL", "cuMemAlloc_v2:3"), "CUDA: cannot allocate device memory");
}

#[test]
fn a_mount_outlives_a_gpu_that_fails_while_it_decodes() {
    outlives(("BSZ_FAKE_FAIL", "cuMemcpyHtoDAsync_v2:1"), "CUDA: cannot upload");
}

#[test]
fn an_idle_gpu_is_given_back_and_opened_again() {
    mount_test(|rig| {
        if fake::driver().is_none() {
            return;
        }
        let (packed, bytes) = model(rig);
        let mount = mounted(rig, &packed, "view", "cuda", ("BSZ_FAKE_NONE", ""));
        let decoded = || mount.log().matches("the GPU decoded").count();
        read_layers(&mount, "model.safetensors", &bytes);
        wait_for("the GPU to decode something", || decoded() > 0);
        let before = decoded();
        // That takes 30 seconds, and there is only so much patience for one step.
        std::thread::sleep(Duration::from_secs(20));
        wait_for("the context to be given back", || {
            mount.log().contains("is not needed at present")
        });
        read_layers(&mount, "second.safetensors", &bytes);
        wait_for("the GPU to decode again", || decoded() > before);
    });
}

#[test]
fn only_who_asks_for_a_gpu_gets_one() {
    mount_test(|rig| {
        if fake::driver().is_none() {
            return;
        }
        let (packed, bytes) = model(rig);
        // Nothing is asked of the driver, which would never answer.
        let mount = mounted(rig, &packed, "view", "auto", ("BSZ_FAKE_HANG", "cuInit:1"));
        read_layers(&mount, "model.safetensors", &bytes);
        assert!(!mount.log().contains("GPU") && !mount.log().contains("WARN"), "{}", mount.log());
    });
}
