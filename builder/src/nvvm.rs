//! LLVM's intermediate code to PTX with NVIDIA's NVVM compiler, in place of LLVM's own backend.
//!
//! libNVVM reads the code of a current LLVM for Blackwell and later only, for GPUs before it that
//! of LLVM 7. So it compiles for the former, and the PTX is then said to be of the target; `ptxas`
//! refuses it where it holds what the target lacks. NVIDIA does not support that.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    fmt,
    path::PathBuf,
    ptr,
};

use anyhow::{Context, Result, bail, ensure};
use libloading::Library;

use crate::tools;

/// What libNVVM compiles for.
const ARCH: &CStr = c"-arch=compute_100a";

/// That of rustc's PTX, see `compile.rs`, so that the same drivers take it.
const PTX_VERSION: &str = "8.0";

/// libNVVM's own; rustc's says less of vectors.
const DATA_LAYOUT: &str = "e-p:64:64:64-p6:32:32:32-i1:8:8-i8:8:8-i16:16:16-i32:32:32-i64:64:64-\
    i128:128:128-f32:32:32-f64:64:64-f128:128:128-v16:16:16-v32:32:32-v64:64:64-v128:128:128-\
    n16:32:64-a:8:8";

type Handle = *mut c_void;
type OnHandle = unsafe extern "C" fn(*mut Handle) -> c_int;
type AddModule = unsafe extern "C" fn(Handle, *const c_char, usize, *const c_char) -> c_int;
type WithOptions = unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Handle, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Handle, *mut u8) -> c_int;

/// The library, and what is called of it, as `nvvm.h` declares it.
pub struct Nvvm {
    path: PathBuf,
    create: OnHandle,
    destroy: OnHandle,
    add_module: AddModule,
    verify: WithOptions,
    compile: WithOptions,
    result: (Size, Text),
    log: (Size, Text),
    /// The functions above are its.
    _library: Library,
}

impl Nvvm {
    /// Finds and loads it.
    pub fn load() -> Result<Self> {
        let path = tools::find("libnvvm.so.4")?;
        // SAFETY: NVIDIA's library may be loaded at any time, and has functions of these types.
        unsafe {
            let library =
                Library::new(&path).with_context(|| format!("cannot load {}", path.display()))?;
            Ok(Self {
                path,
                create: *library.get("nvvmCreateProgram")?,
                destroy: *library.get("nvvmDestroyProgram")?,
                add_module: *library.get("nvvmAddModuleToProgram")?,
                verify: *library.get("nvvmVerifyProgram")?,
                compile: *library.get("nvvmCompileProgram")?,
                result: (
                    *library.get("nvvmGetCompiledResultSize")?,
                    *library.get("nvvmGetCompiledResult")?,
                ),
                log: (
                    *library.get("nvvmGetProgramLogSize")?,
                    *library.get("nvvmGetProgramLog")?,
                ),
                _library: library,
            })
        }
    }

    /// PTX for `sm` of rustc's code, and the version of libNVVM.
    pub fn ptx(&self, ir: &str, sm: &str) -> Result<(String, String)> {
        let ptx = self.compile(&for_nvvm(ir)?)?;
        let version = ptx.lines().find_map(|line| line.split_once(", V"));
        let (_, version) = version.context("libNVVM's PTX names no version")?;
        Ok((retarget(&ptx, sm)?, format!("libNVVM {version}")))
    }

    /// What libNVVM makes of a module.
    fn compile(&self, ir: &str) -> Result<String> {
        let program = Program::new(self)?;
        let (handle, options) = (program.handle, [ARCH.as_ptr()]);
        let count = options.len() as c_int;
        // SAFETY: the program lives; text and options outlive the calls.
        unsafe {
            let text = ir.as_ptr().cast();
            let added = (self.add_module)(handle, text, ir.len(), c"kernels".as_ptr());
            program.check(added, "reading")?;
            program.check((self.verify)(handle, count, options.as_ptr()), "verifying")?;
            program.check((self.compile)(handle, count, options.as_ptr()), "compiling")?;
        }
        program.text(self.result)
    }
}

impl fmt::Display for Nvvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libNVVM ({})", self.path.display())
    }
}

struct Program<'a> {
    nvvm: &'a Nvvm,
    handle: Handle,
}

impl<'a> Program<'a> {
    fn new(nvvm: &'a Nvvm) -> Result<Self> {
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` is written.
        let code = unsafe { (nvvm.create)(&mut handle) };
        ensure!(code == 0, "libNVVM makes no program: error {code}");
        Ok(Self { nvvm, handle })
    }

    /// Fails with libNVVM's log.
    fn check(&self, code: c_int, step: &str) -> Result<()> {
        if code != 0 {
            let log = self.text(self.nvvm.log)?;
            bail!("libNVVM, {step}: error {code}\n{}", log.trim());
        }
        Ok(())
    }

    fn text(&self, (size, text): (Size, Text)) -> Result<String> {
        let mut bytes = 0;
        // SAFETY: the program lives, and a size is written.
        let code = unsafe { size(self.handle, &mut bytes) };
        ensure!(code == 0, "libNVVM tells no length: error {code}");
        let mut buffer = vec![0; bytes];
        // SAFETY: as many bytes are written as were told.
        let code = unsafe { text(self.handle, buffer.as_mut_ptr()) };
        ensure!(code == 0, "libNVVM tells no text: error {code}");
        let text = CStr::from_bytes_until_nul(&buffer).context("libNVVM's text has no end")?;
        Ok(text.to_string_lossy().into_owned())
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: it was created, and nobody uses it any more.
        unsafe { (self.nvvm.destroy)(&mut self.handle) };
    }
}

/// rustc's code as libNVVM reads it: with its data layout and its version of NVVM IR, and without
/// a word on the target.
fn for_nvvm(ir: &str) -> Result<String> {
    let layout = ir
        .lines()
        .find(|line| line.starts_with("target datalayout"));
    let layout = layout.context("the code has no data layout")?;
    let mut text = ir.replace(layout, &format!("target datalayout = \"{DATA_LAYOUT}\""));
    for name in ["target-cpu", "target-features"] {
        text = without_attribute(&text, name);
    }
    let numbers = text.lines().filter_map(|line| {
        let (number, _) = line.strip_prefix('!')?.split_once(" = ")?;
        number.parse::<u32>().ok()
    });
    let free = numbers.max().map_or(0, |last| last + 1);
    text +=
        &format!("\n!nvvmir.version = !{{!{free}}}\n!{free} = !{{i32 2, i32 0, i32 3, i32 2}}\n");
    Ok(text)
}

/// Drops ` "name"="value"`.
fn without_attribute(ir: &str, name: &str) -> String {
    let start = format!(" \"{name}\"=\"");
    let mut pieces = ir.split(&start);
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        text += piece.split_once('"').map_or("", |(_value, rest)| rest);
    }
    text
}

/// The same PTX, said to be for `sm`.
fn retarget(ptx: &str, sm: &str) -> Result<String> {
    let mut text = String::new();
    let mut replaced = 0;
    for line in ptx.lines() {
        let line = match line.split_once(' ') {
            Some((".version", _)) => &format!(".version {PTX_VERSION}"),
            Some((".target", _)) => &format!(".target sm_{sm}"),
            _ => line,
        };
        replaced += usize::from(line.starts_with(".version ") || line.starts_with(".target "));
        text += line;
        text.push('\n');
    }
    ensure!(replaced == 2, "libNVVM's PTX names no version or target");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn code_is_made_libnvvms() {
        let ir = "target datalayout = \"e-i64:64\"\ntarget triple = \"nvptx64-nvidia-cuda\"\n\
            attributes #0 = { nounwind \"target-cpu\"=\"sm_90a\" \"target-features\"=\"+ptx80\" }\n\
            attributes #1 = { \"a\"=\"b\" \"target-cpu\"=\"sm_90a\" \"c\" }\n\
            !llvm.ident = !{!7}\n!7 = !{!\"rustc\"}\n!2 = !{}\n";
        assert_eq!(
            for_nvvm(ir).unwrap(),
            format!(
                "target datalayout = \"{DATA_LAYOUT}\"\ntarget triple = \"nvptx64-nvidia-cuda\"\n\
                attributes #0 = {{ nounwind }}\nattributes #1 = {{ \"a\"=\"b\" \"c\" }}\n\
                !llvm.ident = !{{!7}}\n!7 = !{{!\"rustc\"}}\n!2 = !{{}}\n\n\
                !nvvmir.version = !{{!8}}\n!8 = !{{i32 2, i32 0, i32 3, i32 2}}\n"
            )
        );
        assert!(for_nvvm("target triple = \"x\"\n").is_err());
    }

    /// Needs the library.
    #[test]
    fn a_kernel_is_compiled_and_nonsense_refused() {
        let nvvm = match Nvvm::load() {
            Ok(nvvm) => nvvm,
            Err(reason) => {
                // Not `eprintln!`, which the test harness would swallow.
                let _ = writeln!(
                    std::io::stderr(),
                    "SKIPPED a_kernel_is_compiled_and_nonsense_refused: {reason}"
                );
                return;
            }
        };
        let head = "target datalayout = \"e\"\ntarget triple = \"nvptx64-nvidia-cuda\"\n";
        let kernel = format!("{head}define ptx_kernel void @nothing() {{\n  ret void\n}}\n");
        let (ptx, version) = nvvm.ptx(&kernel, "90a").unwrap();
        assert!(ptx.contains("\n.target sm_90a\n"), "{ptx}");
        assert!(ptx.contains("\n.visible .entry nothing()\n"), "{ptx}");
        assert!(version.starts_with("libNVVM 1"), "{version}");
        let error = nvvm.ptx(&format!("{head}nonsense\n"), "90a").unwrap_err();
        assert!(
            error.to_string().contains("expected top-level entity"),
            "{error}"
        );
    }

    #[test]
    fn only_the_head_of_ptx_is_changed() {
        let ptx = "// head\n.version 9.5\n.target sm_100a\n.address_size 64\n\tret;\n";
        assert_eq!(
            retarget(ptx, "90a").unwrap(),
            "// head\n.version 8.0\n.target sm_90a\n.address_size 64\n\tret;\n"
        );
        assert!(retarget(".version 9.5\n", "90a").is_err());
    }
}
