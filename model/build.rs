//! Compiles the kernels of `src/ops/*.cu`: for GPUs with feature `cuda`, and with feature `cuda-emulator`
//! for the processor as well. Without either there is nothing to do.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compute capabilities that kernels are compiled for: A100, H100 and H200, B200; the last also as PTX, which
/// the driver compiles for what comes after.
const CAPABILITIES: [&str; 3] = ["80", "90", "100"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/ops");
    println!("cargo::rerun-if-changed=src/cuda");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "FLAMINGO_CUDA_CAPABILITIES"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let sources = sources(Path::new("src/ops"));
    compile_for_gpus(&sources, &out);
    if env::var_os("CARGO_FEATURE_CUDA_EMULATOR").is_some() {
        compile_for_the_processor(&sources, &out);
    }
}

/// The kernels' files, in order.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder of the operations can be read");
    let mut all: Vec<PathBuf> = entries
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    all.sort();
    all
}

/// One file of machine code for all GPUs from each source, and a list of them that the driver loads.
fn compile_for_gpus(sources: &[PathBuf], out: &Path) {
    let nvcc = nvcc();
    let wanted = env::var("FLAMINGO_CUDA_CAPABILITIES").ok();
    let capabilities: Vec<&str> =
        wanted.as_deref().map_or_else(|| CAPABILITIES.to_vec(), |list| list.split(',').collect());
    let headers = ["common.cuh", "elementwise.cuh", "tensor_core.cuh", "wgmma.cuh"]
        .iter()
        .filter_map(|header| newest(&[&Path::new("src/ops").join(header)]))
        .max();
    let version = Command::new(&nvcc).arg("--version").output().map(|output| output.stdout);
    let version = String::from_utf8_lossy(&version.unwrap_or_default()).into_owned();
    let made_with = format!("{} {version} {}", nvcc.display(), capabilities.join(","));
    let mut list = String::from("&[\n");
    for source in sources {
        let name = source.file_stem().expect("a source has a name").to_string_lossy().into_owned();
        let to = out.join(format!("{name}.fatbin"));
        let stamp = out.join(format!("{name}.made-with"));
        let current = newest(&[&to]) > newest(&[source]).max(headers)
            && fs::read_to_string(&stamp).is_ok_and(|text| text == made_with);
        if !current {
            // Without it, what is half written counts for nothing.
            let _ = fs::remove_file(&stamp);
            let mut command = Command::new(&nvcc);
            command.args([
                "-fatbin",
                "-O3",
                "-std=c++17",
                "--threads",
                "0",
                "--diag-suppress",
                "177",
            ]);
            for capability in &capabilities {
                // Products of warpgroups are there for this very chip alone, under a name of its own.
                let own = *capability == "90" && name.ends_with("_hopper");
                let capability = if own { "90a" } else { capability };
                command.arg(format!("-gencode=arch=compute_{capability},code=sm_{capability}"));
            }
            if let Some(last) = capabilities.last() {
                command.arg(format!("-gencode=arch=compute_{last},code=compute_{last}"));
            }
            run(command.arg("-o").arg(&to).arg(source));
            fs::write(&stamp, &made_with).expect("OUT_DIR can be written");
        }
        writeln!(list, "    include_bytes!({:?}),", to.display().to_string())
            .expect("a string takes all that is written");
    }
    list.push(']');
    fs::write(out.join("kernels.rs"), list).expect("OUT_DIR can be written");
}

fn newest(paths: &[&Path]) -> Option<std::time::SystemTime> {
    paths.iter().filter_map(|path| fs::metadata(path).ok()?.modified().ok()).max()
}

/// The compiler: `NVCC`, or that of the toolkit in `CUDA_HOME`, `CUDA_PATH` or its usual place, or the first in `PATH`.
fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let toolkits =
        [env::var_os("CUDA_HOME"), env::var_os("CUDA_PATH"), Some("/usr/local/cuda".into())];
    let found = toolkits.into_iter().flatten().map(|toolkit| Path::new(&toolkit).join("bin/nvcc"));
    found.into_iter().find(|path| path.exists()).unwrap_or_else(|| "nvcc".into())
}

/// The same sources for the emulator: as they are, and with a call of `races.cpp` at each access to memory.
fn compile_for_the_processor(sources: &[PathBuf], out: &Path) {
    let here = env::current_dir().expect("cargo runs this in the package's folder");
    let line = |source: &Path| format!("#include {:?}\n", here.join(source).display().to_string());
    let of_tests = Path::new("src/cuda/races_kernels.cpp");
    let sources = sources.iter().map(PathBuf::as_path).chain([of_tests]);
    let kernels: String = sources.map(line).collect();
    // All in a namespace that is the file's own: two of them go into one program, and code is one section, in which
    // `races.cpp` finds lines.
    let plain = format!("{}namespace {{\n{kernels}}}\n", line(Path::new("src/cuda/emulator.hpp")));
    let checked = format!(
        "#define EMULATOR_CHECKS_RACES 1\n{plain}extern \"C\" void kernels_anchor() {{}}\n"
    );
    let build = || {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++20").opt_level(2).warnings(false);
        build
    };
    let compile = |build: &mut cc::Build, name: &str, program: &str| {
        let path = out.join(name);
        fs::write(&path, program).expect("OUT_DIR can be written");
        build.file(path).compile_intermediates()
    };
    let plain = compile(&mut build(), "kernels.cpp", &plain);
    let checked = compile(
        build().flag("-fsanitize=thread").flag("-g1").flag("-fno-function-sections"),
        "checked_kernels.cpp",
        &checked,
    );
    let [object] = &checked[..] else { panic!("one source gives one object, not {checked:?}") };
    build()
        .define("KERNELS_OBJECT", Some(&*format!("{:?}", object.display().to_string())))
        .file("src/cuda/emulator.cpp")
        .file("src/cuda/races.cpp")
        .objects(&plain)
        .objects(&checked)
        // They make themselves known; nothing else refers to them.
        .link_lib_modifier("+whole-archive")
        .compile("kernels");
}

/// Runs a command; without success the build ends with what it said.
fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| {
        let program = command.get_program().display();
        panic!(
            "cannot run {program}: {error}; set NVCC or CUDA_HOME, or build with ./build-cuda.sh"
        )
    });
    assert!(status.success(), "{command:?} ended with {status}");
}
