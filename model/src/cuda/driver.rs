//! NVIDIA's driver and its library of matrix products, both loaded at run time.
#![allow(unsafe_code, reason = "calls the driver, and hands it addresses of its own memory")]

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::{result as lt, sys as lt_sys};
use cudarc::driver::{result, sys};

use rayon::prelude::*;

use super::{Arg, CudaError, Factor, Grid, Kind, Product};

/// All kernels, for every kind of GPU that the build knows: one image for each source file.
static KERNELS: &[&[u8]] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Bytes that products may use while they run: what the library's documentation asks for on these GPUs.
const WORKSPACE: usize = 64 << 20;
/// Most shapes of products whose plans are kept: a loss has as many rows as its batch has targets.
const PLANS_MAX: usize = 4096;
/// Bytes of a pinned buffer.
const STAGE: usize = 16 << 20;
/// So many bytes are worth the way through pinned buffers.
const STAGED_FROM: usize = 1 << 20;
/// Bytes of shared memory that every kernel may have; for more the driver wants to be told.
const SHARED_PLAIN: usize = 48 << 10;

/// One open GPU.
pub(super) struct Driver {
    name: String,
    /// Compute capability.
    capability: (i32, i32),
    multiprocessors: usize,
    /// Most bytes that the threads of a block can share.
    shared_max: usize,
    /// Whether the GPU reads what programs have where it lies, as beside a Grace: then a copy may read after its call.
    reads_host_pages: bool,
    context: sys::CUcontext,
    stream: sys::CUstream,
    pool: sys::CUmemoryPool,
    modules: Vec<sys::CUmodule>,
    /// Kernels that have been launched, each with the bytes of shared memory that it may have.
    functions: Mutex<HashMap<&'static str, (sys::CUfunction, usize)>>,
    products: lt_sys::cublasLtHandle_t,
    workspace: u64,
    plans: Mutex<HashMap<Shape, Plan>>,
    stages: Mutex<Vec<Stage>>,
    /// Launches that are being timed; none if they are not.
    timed: Mutex<Option<Vec<Timed>>>,
}

/// A launch between two events.
struct Timed {
    name: &'static str,
    start: sys::CUevent,
    end: sys::CUevent,
}

/// A pinned buffer, and the event that says that it may be filled again.
struct Stage {
    buffer: *mut c_void,
    sent: sys::CUevent,
}

impl Stage {
    fn new() -> Result<Self, CudaError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let sent = result::event::create(flags).map_err(driver_error("cuEventCreate"))?;
        // SAFETY: asks for memory, which is kept as long as the program runs.
        let buffer =
            unsafe { result::malloc_host(STAGE, 0) }.map_err(driver_error("cuMemHostAlloc"))?;
        Ok(Self { buffer, sent })
    }
}

// SAFETY: the driver's handles may be used by any thread whose context is set, which `bind` does.
unsafe impl Send for Driver {}
// SAFETY: as above; the maps are behind locks.
unsafe impl Sync for Driver {}

/// What decides how a product is made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Shape {
    sizes: [usize; 6],
    transposed: [bool; 2],
    kinds: [Kind; 2],
    bias: bool,
    adds: bool,
    alignments: [u32; 3],
}

/// How a product is made.
struct Plan {
    desc: lt_sys::cublasLtMatmulDesc_t,
    layouts: [lt_sys::cublasLtMatrixLayout_t; 3],
    algo: lt_sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `Driver::plan`, and not used any more: the library has read them when a call returns.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.desc);
            for layout in self.layouts {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}

fn driver_error(call: &'static str) -> impl Fn(result::DriverError) -> CudaError {
    move |error| {
        let name = error.error_name().ok().map(CStr::to_string_lossy);
        let text = error.error_string().ok().map(CStr::to_string_lossy);
        let answer = format!("{} ({})", text.unwrap_or_default(), name.unwrap_or_default());
        CudaError::Call { call, answer }
    }
}

fn product_error(call: &'static str) -> impl Fn(lt::CublasError) -> CudaError {
    move |error| CudaError::Call { call, answer: format!("{:?}", error.0) }
}

impl Driver {
    pub(super) fn open(index: usize) -> Result<Self, CudaError> {
        // SAFETY: looks for libraries by their names.
        unsafe {
            if !sys::is_culib_present() {
                let hint = "an NVIDIA driver is needed";
                return Err(CudaError::NoLibrary { library: "libcuda.so", hint });
            }
            if !lt_sys::is_culib_present() {
                let hint =
                    "install the CUDA toolkit, or add the folder of the library to LD_LIBRARY_PATH";
                return Err(CudaError::NoLibrary { library: "libcublasLt.so", hint });
            }
        }
        result::init().map_err(driver_error("cuInit"))?;
        let count = result::device::get_count().map_err(driver_error("cuDeviceGetCount"))? as usize;
        if index >= count {
            return Err(CudaError::NoDevice { index, count });
        }
        let device = result::device::get(index as i32).map_err(driver_error("cuDeviceGet"))?;
        let name = result::device::get_name(device).map_err(driver_error("cuDeviceGetName"))?;
        // SAFETY: handles are made and used in the order that the driver's documentation asks for.
        unsafe {
            let context = result::primary_ctx::retain(device)
                .map_err(driver_error("cuDevicePrimaryCtxRetain"))?;
            result::ctx::set_current(context).map_err(driver_error("cuCtxSetCurrent"))?;
            let attribute = |what| result::device::get_attribute(device, what).unwrap_or(0);
            let major =
                attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
            let minor =
                attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
            let load = |image: &&[u8]| result::module::load_data(image.as_ptr().cast());
            let modules = KERNELS.iter().map(load).collect::<Result<_, _>>().map_err(
                |error: result::DriverError| match error.0 {
                    sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
                    | sys::CUresult::CUDA_ERROR_INVALID_PTX => {
                        CudaError::Kernels { name: name.clone(), major, minor }
                    }
                    _ => driver_error("cuModuleLoadData")(error),
                },
            )?;
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
                .map_err(driver_error("cuStreamCreate"))?;
            let pool = result::device::get_default_mem_pool(device)
                .map_err(driver_error("cuDeviceGetDefaultMemPool"))?;
            // Freed memory stays with the pool, which gives it out again without asking the system.
            let mut keep = u64::MAX;
            result::mem_pool::set_attribute(
                pool,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                (&raw mut keep).cast(),
            )
            .map_err(driver_error("cuMemPoolSetAttribute"))?;
            let products = lt::create_handle().map_err(product_error("cublasLtCreate"))?;
            let multiprocessors =
                attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
            let shared_max = attribute(
                sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            );
            let reads_host_pages = attribute(
                sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES,
            );
            let mut driver = Self {
                name,
                capability: (major, minor),
                multiprocessors: multiprocessors as usize,
                shared_max: shared_max as usize,
                reads_host_pages: reads_host_pages != 0,
                context,
                stream,
                pool,
                modules,
                functions: Mutex::default(),
                products,
                workspace: 0,
                plans: Mutex::default(),
                stages: Mutex::default(),
                timed: Mutex::default(),
            };
            driver.workspace = driver.allocate(WORKSPACE)?;
            Ok(driver)
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn capability(&self) -> (i32, i32) {
        self.capability
    }

    pub(super) fn shared_max(&self) -> usize {
        self.shared_max
    }

    pub(super) fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Lets this thread use the GPU. What else it runs, such as NCCL, may have chosen another.
    fn bind(&self) -> Result<(), CudaError> {
        let current = result::ctx::get_current().map_err(driver_error("cuCtxGetCurrent"))?;
        if current == Some(self.context) {
            return Ok(());
        }
        // SAFETY: the context lives as long as the program.
        unsafe { result::ctx::set_current(self.context) }.map_err(driver_error("cuCtxSetCurrent"))
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.bind()?;
        // SAFETY: asks for memory.
        unsafe { result::malloc_async(self.stream, bytes) }.map_err(|error| {
            if error.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return driver_error("cuMemAllocAsync")(error);
            }
            let (free, total) = result::mem_get_info().unwrap_or((0, 0));
            let used = self.memory(false).map_or(0, |(used, _)| used as usize);
            CudaError::Memory { asked: bytes, used, free, total }
        })
    }

    pub(super) fn free(&self, address: u64) {
        // After a failure of the GPU nothing can be freed, and nothing needs to.
        if self.bind().is_ok() {
            // SAFETY: given by `allocate`, and freed once.
            let _ = unsafe { result::free_async(address, self.stream) };
        }
    }

    pub(super) fn clear(&self, address: u64, bytes: usize) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: within an array.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream) }
            .map_err(driver_error("cuMemsetD8Async"))
    }

    pub(super) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: within two arrays.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }
            .map_err(driver_error("cuMemcpyDtoDAsync"))
    }

    /// Sends bytes. Large ones go through two pinned buffers in turn: one is filled while the other is on its
    /// way, and the call returns while the last is.
    pub(super) fn upload(&self, address: u64, bytes: &[u8]) -> Result<(), CudaError> {
        self.bind()?;
        if bytes.len() < STAGED_FROM {
            // SAFETY: within an array; the call returns once the bytes have been read, or they are waited for.
            unsafe { result::memcpy_htod_async(address, bytes, self.stream) }
                .map_err(driver_error("cuMemcpyHtoDAsync"))?;
            return if self.reads_host_pages { self.wait() } else { Ok(()) };
        }
        // Not under the lock, since threads of the pool help, which may have uploads of their own.
        let lock = || self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stages = std::mem::take(&mut *lock());
        while stages.len() < 2 {
            stages.push(Stage::new()?);
        }
        for (i, part) in bytes.chunks(STAGE).enumerate() {
            let stage = &stages[i % 2];
            // SAFETY: the buffer is as long as a part, and nothing reads it once its event has come.
            unsafe {
                result::event::synchronize(stage.sent)
                    .map_err(driver_error("cuEventSynchronize"))?;
                let room = std::slice::from_raw_parts_mut(stage.buffer.cast::<u8>(), part.len());
                let each = part.len().div_ceil(rayon::current_num_threads()).max(1 << 20);
                room.par_chunks_mut(each)
                    .zip(part.par_chunks(each))
                    .for_each(|(room, part)| room.copy_from_slice(part));
                let to = address + (i * STAGE) as u64;
                result::memcpy_htod_async(to, room, self.stream)
                    .map_err(driver_error("cuMemcpyHtoDAsync"))?;
                result::event::record(stage.sent, self.stream)
                    .map_err(driver_error("cuEventRecord"))?;
            }
        }
        lock().append(&mut stages);
        Ok(())
    }

    pub(super) fn download(&self, bytes: &mut [u8], address: u64) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: within an array; the bytes are not read before the stream is done.
        unsafe { result::memcpy_dtoh_async(bytes, address, self.stream) }
            .map_err(driver_error("cuMemcpyDtoHAsync"))?;
        self.wait()
    }

    pub(super) fn wait(&self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the stream lives as long as the program.
        unsafe { result::stream::synchronize(self.stream) }
            .map_err(driver_error("cuStreamSynchronize"))
    }

    pub(super) fn memory(&self, reset: bool) -> Result<(u64, u64), CudaError> {
        self.bind()?;
        let get = |what| {
            let mut value = 0_u64;
            // SAFETY: both attributes are 64 bits wide.
            unsafe { result::mem_pool::get_attribute(self.pool, what, (&raw mut value).cast()) }
                .map_err(driver_error("cuMemPoolGetAttribute"))?;
            Ok(value)
        };
        let used = get(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        let most = get(high)?;
        if reset {
            let mut zero = 0_u64;
            // SAFETY: as above; 0 is the one value that can be set.
            unsafe { result::mem_pool::set_attribute(self.pool, high, (&raw mut zero).cast()) }
                .map_err(driver_error("cuMemPoolSetAttribute"))?;
        }
        Ok((used, most))
    }

    fn function(&self, name: &'static str, shared: usize) -> Result<sys::CUfunction, CudaError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((function, most)) = functions.get(name)
            && shared <= *most
        {
            return Ok(*function);
        }
        let c_name = CStr::from_bytes_with_nul(name.as_bytes()).expect("names end in 0");
        // SAFETY: modules live as long as the program.
        unsafe {
            let not_found = sys::CUresult::CUDA_ERROR_NOT_FOUND;
            let mut found = Err(result::DriverError(not_found));
            for module in &self.modules {
                found = found.or_else(|_| result::module::get_function(*module, c_name.to_owned()));
            }
            let function = found.map_err(driver_error(name))?;
            if shared > SHARED_PLAIN {
                result::function::set_function_attribute(
                    function,
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared as i32,
                )
                .map_err(driver_error("cuFuncSetAttribute"))?;
            }
            functions.insert(name, (function, shared.max(SHARED_PLAIN)));
            Ok(function)
        }
    }

    /// Times every launch from here on.
    pub(super) fn start_timing(&self) {
        *self.timed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// Launches since [`Driver::start_timing`]: names and seconds, in order.
    pub(super) fn end_timing(&self) -> Result<Vec<(&'static str, f64)>, CudaError> {
        self.wait()?;
        let timed = self.timed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let seconds = |Timed { name, start, end }: Timed| {
            // SAFETY: both events were recorded, and are not used any more.
            unsafe {
                let elapsed =
                    result::event::elapsed(start, end).map_err(driver_error("cuEventElapsedTime"));
                let _ = (result::event::destroy(start), result::event::destroy(end));
                Ok((name, f64::from(elapsed?) * 1e-3))
            }
        };
        timed.unwrap_or_default().into_iter().map(seconds).collect()
    }

    /// Runs `launch`, between two events if launches are timed.
    fn timing(
        &self,
        name: &'static str,
        launch: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let mut timed = self.timed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(timed) = &mut *timed else { return launch() };
        let event = || {
            let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
            let event = result::event::create(flags).map_err(driver_error("cuEventCreate"))?;
            // SAFETY: the event and the stream are there.
            unsafe { result::event::record(event, self.stream) }
                .map_err(driver_error("cuEventRecord"))?;
            Ok(event)
        };
        let start = event()?;
        launch()?;
        timed.push(Timed { name, start, end: event()? });
        Ok(())
    }

    pub(super) fn launch(
        &self,
        name: &'static str,
        grid: Grid,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        self.bind()?;
        let function = self.function(name, grid.shared)?;
        let mut pointers: [*mut c_void; 32] = [std::ptr::null_mut(); 32];
        for (pointer, arg) in pointers.iter_mut().zip(args) {
            *pointer = arg.pointer();
        }
        let [x, y] = grid.blocks.map(|n| n as u32);
        // SAFETY: the kernel takes these arguments (the emulated tests run each one so).
        let launch = || unsafe {
            result::launch_kernel(
                function,
                (x, y, 1),
                (grid.threads as u32, 1, 1),
                grid.shared as u32,
                self.stream,
                &mut pointers[..args.len()],
            )
            .map_err(driver_error(name))
        };
        self.timing(name, launch)
    }

    /// The library is column-major: it makes the transpose of the result, of transposed factors in
    /// reversed order, which lie in memory as ours do.
    pub(super) fn multiply(&self, p: &Product) -> Result<(), CudaError> {
        self.bind()?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let shape = Shape {
            sizes: [p.rows, p.inner, p.columns, p.left.stride, p.right.stride, p.out_stride],
            transposed: [p.left.transposed, p.right.transposed],
            kinds: [p.left.kind, p.out_kind],
            bias: p.bias.is_some(),
            adds: p.add.is_some(),
            alignments: alignments(p),
        };
        if !plans.contains_key(&shape) {
            if plans.len() >= PLANS_MAX {
                plans.clear();
            }
            let plan = self.plan(p)?;
            plans.insert(shape.clone(), plan);
        }
        let plan = &plans[&shape];
        let beta = if p.add.is_some() { 1.0_f32 } else { 0.0 };
        // SAFETY: the plan was made for arrays of these sizes.
        unsafe {
            set_bias(plan.desc, p)?;
            let make = || {
                lt::matmul(
                    self.products,
                    plan.desc,
                    std::ptr::from_ref(&p.alpha).cast(),
                    (&raw const beta).cast(),
                    p.right.address as *const c_void,
                    plan.layouts[0],
                    p.left.address as *const c_void,
                    plan.layouts[1],
                    p.add.unwrap_or(p.out) as *const c_void,
                    plan.layouts[2],
                    p.out as *mut c_void,
                    plan.layouts[2],
                    &raw const plan.algo,
                    self.workspace as *mut c_void,
                    WORKSPACE,
                    self.stream.cast(),
                )
                .map_err(product_error("cublasLtMatmul"))
            };
            self.timing("product\0", make)
        }
    }

    fn plan(&self, p: &Product) -> Result<Plan, CudaError> {
        use lt_sys::cublasLtMatmulDescAttributes_t as Attribute;
        use lt_sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let set = product_error("cublasLtMatmulDescSetAttribute");
        // SAFETY: attributes are given in the types that the library's documentation names.
        unsafe {
            let desc = lt::create_matmul_desc(
                lt_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                lt_sys::cudaDataType::CUDA_R_32F,
            )
            .map_err(product_error("cublasLtMatmulDescCreate"))?;
            let turned = |f: &Factor| i32::from(f.transposed);
            for (attribute, value) in [
                (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, turned(&p.right)),
                (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, turned(&p.left)),
            ] {
                lt::set_matmul_desc_attribute(desc, attribute, (&raw const value).cast(), 4)
                    .map_err(&set)?;
            }
            if p.bias.is_some() {
                let epilogue = lt_sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
                let attribute = Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE;
                lt::set_matmul_desc_attribute(desc, attribute, (&raw const epilogue).cast(), 4)
                    .map_err(&set)?;
                // The heuristic looks at it, if only at whether there is one.
                set_bias(desc, p)?;
            }
            // Rows and columns as they lie, seen column by column.
            let layout = |kind, rows: usize, columns: usize, stride: usize| {
                let kind = if kind == Kind::Bf16 {
                    lt_sys::cudaDataType::CUDA_R_16BF
                } else {
                    lt_sys::cudaDataType::CUDA_R_32F
                };
                lt::create_matrix_layout(kind, columns as u64, rows as u64, stride as i64)
                    .map_err(product_error("cublasLtMatrixLayoutCreate"))
            };
            let lying = |f: &Factor, rows: usize, columns: usize| {
                let (rows, columns) = if f.transposed { (columns, rows) } else { (rows, columns) };
                layout(f.kind, rows, columns, f.stride)
            };
            let layouts = [
                lying(&p.right, p.inner, p.columns)?,
                lying(&p.left, p.rows, p.inner)?,
                layout(p.out_kind, p.rows, p.columns, p.out_stride)?,
            ];
            let preference = lt::create_matmul_pref()
                .map_err(product_error("cublasLtMatmulPreferenceCreate"))?;
            let bytes = WORKSPACE;
            lt::set_matmul_pref_attribute(
                preference,
                Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                8,
            )
            .map_err(product_error("cublasLtMatmulPreferenceSetAttribute"))?;
            let [left, right, out] = alignments(p);
            for (attribute, bytes) in [
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, right),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, left),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
            ] {
                lt::set_matmul_pref_attribute(preference, attribute, (&raw const bytes).cast(), 4)
                    .map_err(product_error("cublasLtMatmulPreferenceSetAttribute"))?;
            }
            let [a, b, c] = layouts;
            let found = lt::get_matmul_algo_heuristic(self.products, desc, a, b, c, c, preference)
                .map_err(product_error("cublasLtMatmulAlgoGetHeuristic"))?;
            let _ = lt::destroy_matmul_pref(preference);
            Ok(Plan { desc, layouts, algo: found.algo })
        }
    }
}

/// Tells a product where its bias lies, if it has one.
fn set_bias(desc: lt_sys::cublasLtMatmulDesc_t, p: &Product) -> Result<(), CudaError> {
    let Some(bias) = p.bias else { return Ok(()) };
    let attribute = lt_sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
    // SAFETY: the attribute is an address, which is copied.
    unsafe { lt::set_matmul_desc_attribute(desc, attribute, (&raw const bias).cast(), 8) }
        .map_err(product_error("cublasLtMatmulDescSetAttribute"))
}

/// Bytes of which the addresses of left factor, right factor and result (with what is added to it) are multiples, 256
/// at most. The library has no word for the bias: it takes it to be aligned as the result is.
fn alignments(p: &Product) -> [u32; 3] {
    let of = |address: u64| 1 << address.trailing_zeros().min(8);
    let out = p.out | p.add.unwrap_or(0) | p.bias.unwrap_or(0);
    [of(p.left.address), of(p.right.address), of(out)]
}
