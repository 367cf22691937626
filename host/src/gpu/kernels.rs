//! The kernels of a PTX file, each a module of its own: the driver compiles those that are wanted,
//! when they are.

use std::{
    borrow::Cow,
    ffi::{CString, c_uint, c_void},
    ops::Range,
    ptr,
    sync::{Mutex, OnceLock, PoisonError},
    time::Instant,
};

use cudarc::driver::sys;
use zipserv_gpu::{
    launch::{KERNELS, Launch},
    ptx,
};

use super::{
    driver::{RawStream, check},
    error::GpuError,
    family::Family,
};

/// Kernels by name.
pub struct Kernels {
    family: Family,
    ptx: Cow<'static, str>,
    /// What stands outside of all kernels.
    shared: Vec<Range<usize>>,
    entries: Vec<Entry>,
    /// One thread at a time compiles.
    compiling: Mutex<()>,
    crc32: OnceLock<u32>,
}

struct Entry {
    launch: &'static Launch,
    /// Its text.
    text: Range<usize>,
    loaded: OnceLock<Loaded>,
}

#[derive(Clone, Copy)]
struct Loaded {
    module: sys::CUmodule,
    function: sys::CUfunction,
    resident: u32,
}

// SAFETY: handles that the driver lets any thread use, of a module that lives as long as `Kernels`.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

/// A loaded kernel; it is there as long as its device.
#[derive(Clone, Copy)]
pub struct Kernel {
    function: sys::CUfunction,
    pub launch: &'static Launch,
    /// Of a block.
    shared_bytes: usize,
    /// Blocks that fit on one SM.
    pub resident: u32,
}

impl Kernels {
    /// Those of a family.
    pub fn built_in(family: Family) -> Self {
        let ptx = match family {
            Family::Hopper => ptx::SM_90A,
            Family::Portable => ptx::SM_80,
        };
        Self::new(ptx.into())
    }

    /// Those of a PTX file. Entries that are not in [`KERNELS`] are left out.
    pub fn new(ptx: Cow<'static, str>) -> Self {
        Self::with_launches(ptx, KERNELS)
    }

    /// The same with another table.
    pub fn with_launches(ptx: Cow<'static, str>, launches: &'static [Launch]) -> Self {
        let family = match ptx.contains(".target sm_90a") {
            true => Family::Hopper,
            false => Family::Portable,
        };
        let (shared, texts) = split(&ptx);
        let entry = |(name, text): (&str, Range<usize>)| {
            let launch = launches.iter().find(|launch| launch.name == name)?;
            Some(Entry {
                launch,
                text,
                loaded: OnceLock::new(),
            })
        };
        let entries = texts.into_iter().filter_map(entry).collect();
        Self {
            family,
            shared,
            entries,
            ptx,
            compiling: Mutex::new(()),
            crc32: OnceLock::new(),
        }
    }

    /// Those whose blocks have so many bytes of shared memory at most.
    pub fn that_fit(mut self, shared_bytes: usize) -> Self {
        let fits = |entry: &Entry| entry.launch.shared_bytes <= shared_bytes;
        self.entries.retain(fits);
        self
    }

    pub fn family(&self) -> Family {
        self.family
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.entries.iter().map(|entry| entry.launch.name)
    }

    pub fn has(&self, kernel: &str) -> bool {
        self.names().any(|name| name == kernel)
    }

    /// CRC-32 of the PTX but for comments on lines of their own, which change with each word in the
    /// sources.
    pub fn crc32(&self) -> u32 {
        *self.crc32.get_or_init(|| {
            let mut hasher = crc32fast::Hasher::new();
            for line in self.ptx.lines().filter(|line| !line.starts_with("//")) {
                hasher.update(line.as_bytes());
                hasher.update(b"\n");
            }
            hasher.finalize()
        })
    }

    pub fn launch(&self, kernel: &str) -> Result<&'static Launch, GpuError> {
        Ok(self.entry(kernel)?.launch)
    }

    fn entry(&self, kernel: &str) -> Result<&Entry, GpuError> {
        let mut entries = self.entries.iter();
        let found = entries.find(|entry| entry.launch.name == kernel);
        found.ok_or_else(|| GpuError::NoKernel {
            kernel: kernel.to_owned(),
            family: self.family,
        })
    }

    /// A kernel, if it is loaded.
    pub fn loaded(&self, kernel: &str) -> Result<Option<Kernel>, GpuError> {
        let entry = self.entry(kernel)?;
        Ok(entry.loaded.get().map(|loaded| entry.kernel(loaded)))
    }

    /// A kernel, for the current context. The first call for it has the driver compile it.
    pub fn load(&self, kernel: &str) -> Result<Kernel, GpuError> {
        let entry = self.entry(kernel)?;
        if let Some(loaded) = entry.loaded.get() {
            return Ok(entry.kernel(loaded));
        }
        let turn = self.compiling.lock();
        let _turn = turn.unwrap_or_else(PoisonError::into_inner);
        // Another thread may have had its turn before.
        if let Some(loaded) = entry.loaded.get() {
            return Ok(entry.kernel(loaded));
        }
        let loaded = self.compile(entry)?;
        Ok(entry.kernel(entry.loaded.get_or_init(|| loaded)))
    }

    fn compile(&self, entry: &Entry) -> Result<Loaded, GpuError> {
        let launch = entry.launch;
        let mut loaded = Loaded {
            module: ptr::null_mut(),
            function: ptr::null_mut(),
            resident: 0,
        };
        let start = Instant::now();
        load_module(launch.name, &self.text(entry), &mut loaded.module)?;
        tracing::debug!(kernel = launch.name, took = ?start.elapsed(), "loaded");
        match loaded.prepare(launch) {
            Ok(()) => Ok(loaded),
            Err(error) => {
                loaded.unload();
                Err(error)
            }
        }
    }

    /// The PTX of one kernel alone.
    fn text(&self, entry: &Entry) -> String {
        let parts = self.shared.iter().chain([&entry.text]);
        parts.map(|part| &self.ptx[part.clone()]).collect()
    }

    /// Unloads what was loaded, from the current context.
    ///
    /// # Safety
    /// No kernel runs, or will be launched.
    pub unsafe fn unload(&mut self) {
        for entry in &mut self.entries {
            if let Some(loaded) = entry.loaded.take() {
                loaded.unload();
            }
        }
    }
}

impl Entry {
    fn kernel(&self, loaded: &Loaded) -> Kernel {
        Kernel {
            function: loaded.function,
            launch: self.launch,
            shared_bytes: self.launch.shared_bytes,
            resident: loaded.resident,
        }
    }
}

impl Loaded {
    /// Finds the function, allows it its shared memory and asks how many blocks fit on an SM.
    fn prepare(&mut self, launch: &Launch) -> Result<(), GpuError> {
        let name = CString::new(launch.name).expect("names have no zeros");
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let mut resident = 0;
        // SAFETY: a live module, then a function of it; the calls write the handle and an `int`.
        unsafe {
            check(
                "cuModuleGetFunction",
                sys::cuModuleGetFunction(&mut self.function, self.module, name.as_ptr()),
            )?;
            check(
                "cuFuncSetAttribute",
                sys::cuFuncSetAttribute(self.function, attribute, launch.shared_bytes as i32),
            )?;
            check(
                "cuOccupancyMaxActiveBlocksPerMultiprocessor",
                sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    &mut resident,
                    self.function,
                    launch.threads as i32,
                    launch.shared_bytes,
                ),
            )?;
        }
        self.resident = resident as u32;
        Ok(())
    }

    fn unload(self) {
        // SAFETY: unloaded once, when nothing uses it. Nothing can be done about an error.
        let _ = unsafe { sys::cuModuleUnload(self.module) };
    }
}

/// Has the driver compile PTX for the current context.
fn load_module(
    kernel: &'static str,
    ptx: &str,
    module: &mut sys::CUmodule,
) -> Result<(), GpuError> {
    use sys::CUjit_option_enum as Jit;
    let text = CString::new(ptx).map_err(|_| GpuError::Load {
        kernel,
        name: "CUDA_ERROR_INVALID_PTX".to_owned(),
        log: "the PTX has a zero in it".to_owned(),
    })?;
    let mut log = vec![0u8; 4096];
    // Sizes are numbers in the place of pointers; the driver sets that of the log.
    let mut options = [
        Jit::CU_JIT_MAX_REGISTERS,
        Jit::CU_JIT_ERROR_LOG_BUFFER,
        Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values = [
        255usize as *mut c_void,
        log.as_mut_ptr().cast(),
        log.len() as *mut c_void,
    ];
    // SAFETY: a string, and as many options as values; the log has its size.
    let status = unsafe {
        sys::cuModuleLoadDataEx(
            module,
            text.as_ptr().cast(),
            options.len() as c_uint,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    Err(GpuError::Load {
        kernel,
        name: format!("{status:?}"),
        log: String::from_utf8_lossy(&log[..end]).trim().to_owned(),
    })
}

impl Kernel {
    /// Blocks that so many SMs hold at a time, no more than the kernel is made for.
    pub fn resident_blocks(&self, sms: u32) -> u32 {
        sms * (self.launch.min_blocks as u32).min(self.resident)
    }

    /// The same with so many bytes of shared memory a block: the driver refuses more than its launch has.
    pub fn with_shared_bytes(self, shared_bytes: usize) -> Self {
        Self {
            shared_bytes,
            ..self
        }
    }

    /// Launches it, as [`Device::launch`](super::Device) says, in the current context.
    ///
    /// # Safety
    /// As said there.
    pub unsafe fn launch<T: Copy>(
        &self,
        blocks: u32,
        stream: RawStream,
        pdl: bool,
        mut args: T,
    ) -> Result<(), GpuError> {
        use sys::CUlaunchAttributeID as Id;
        let attribute = |id, value| sys::CUlaunchAttribute {
            id,
            pad: [0; 4],
            value,
        };
        let mut attributes = [
            attribute(
                Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                sys::CUlaunchAttributeValue {
                    clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                        x: self.launch.cluster as u32,
                        y: 1,
                        z: 1,
                    },
                },
            ),
            attribute(
                Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                sys::CUlaunchAttributeValue {
                    programmaticStreamSerializationAllowed: 1,
                },
            ),
        ];
        // Portable kernels are for devices that know of no clusters.
        let first = usize::from(self.launch.cluster == 1);
        let last = 1 + usize::from(pdl);
        let attributes = &mut attributes[first..last];
        let config = sys::CUlaunchConfig {
            gridDimX: blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: self.launch.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes as u32,
            hStream: stream.cast(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let mut params = [(&raw mut args).cast::<c_void>()];
        // SAFETY: the caller's promise.
        check("cuLaunchKernelEx", unsafe {
            sys::cuLaunchKernelEx(&config, self.function, params.as_mut_ptr(), ptr::null_mut())
        })
    }
}

/// A kernel's name and where its text is.
type Text<'a> = (&'a str, Range<usize>);

/// Where PTX has what all kernels share, and each kernel.
fn split(ptx: &str) -> (Vec<Range<usize>>, Vec<Text<'_>>) {
    const ENTRY: &str = ".entry ";
    let (mut shared, mut entries) = (Vec::new(), Vec::new());
    let (mut rest, mut at) = (0, 0);
    while let Some(found) = ptx[at..].find(ENTRY) {
        let name_at = at + found + ENTRY.len();
        let from = ptx[..name_at].rfind('\n').map_or(0, |newline| newline + 1);
        let to = name_at + end_of_body(&ptx[name_at..]);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
        let name = ptx[name_at..].split(|c| !is_name(c)).next();
        entries.push((name.unwrap_or_default(), from..to));
        shared.push(rest..from);
        (rest, at) = (to, to);
    }
    shared.push(rest..ptx.len());
    (shared, entries)
}

/// Bytes to the brace that closes the first one.
fn end_of_body(ptx: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in ptx.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    ptx.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ptx_tells_its_family() {
        for family in [Family::Hopper, Family::Portable] {
            assert_eq!(Kernels::built_in(family).family(), family);
        }
    }

    #[test]
    fn a_kernel_stands_alone() {
        let ptx = "// a\n.version 8.0\n.func f()\n{\n\tret;\n}\n.visible .entry decompress(\n\t.param \
                   .b8 p[48]\n)\n{\n\t{\n\tret;\n\t}\n}\n.global .b8 g;\n.visible .entry \
                   read()\n{\n}\n// end\n";
        let kernels = Kernels::new(Cow::Borrowed(ptx));
        assert_eq!(kernels.names().collect::<Vec<_>>(), ["decompress", "read"]);
        let text = kernels.text(&kernels.entries[1]);
        let expected = "// a\n.version 8.0\n.func f()\n{\n\tret;\n}\n\n.global .b8 g;\n\n// \
                        end\n.visible .entry read()\n{\n}";
        assert_eq!(text, expected);
        assert!(
            kernels
                .text(&kernels.entries[0])
                .contains("decompress(\n\t.param")
        );
    }

    #[test]
    fn every_kernel_of_the_tables_has_a_text() {
        for family in [Family::Hopper, Family::Portable] {
            let kernels = Kernels::built_in(family);
            assert_eq!(kernels.entries.len(), split(&kernels.ptx).1.len());
            for entry in &kernels.entries {
                let text = kernels.text(entry);
                assert_eq!(text.matches(".entry ").count(), 1);
                assert_eq!(text.matches('{').count(), text.matches('}').count());
                assert!(text.contains(&format!(".entry {}(", entry.launch.name)));
            }
        }
    }
}
