//! Kernel sources to functions on a GPU: compiled once per process, loaded once per device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CudaDevice, Error, Result};
use cudarc::driver::CudaFunction;
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

/// The oldest GPU the kernels run on: the first with bfloat16 products. The driver turns the PTX
/// into code for the GPU at hand.
const ARCHITECTURE: &str = "compute_80";

/// One source file, for one width of a head where it depends on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Program {
    /// Kernels over rows.
    Rows,
    /// Attention for heads of this width.
    Attention(usize),
}

impl Program {
    fn source(self) -> &'static str {
        match self {
            Self::Rows => include_str!("rows.cu"),
            Self::Attention(_) => include_str!("attention.cu"),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Rows => "ditmesh-rows".into(),
            Self::Attention(width) => format!("ditmesh-attention-{width}"),
        }
    }

    fn options(self) -> Vec<String> {
        let mut options = vec!["--std=c++17".to_owned()];
        if let Self::Attention(width) = self {
            options.push(format!("-DWIDTH={width}"));
            options.push(format!("-DPADDED={}", width.next_multiple_of(16)));
        }
        options
    }

    /// The function `entry` on `device`.
    pub(super) fn function(self, device: &CudaDevice, entry: &str) -> Result<CudaFunction> {
        Ok(device.get_or_load_custom_func(entry, &self.name(), &self.ptx()?)?.into_cuda_function())
    }

    fn ptx(self) -> Result<Arc<str>> {
        static COMPILED: Mutex<Option<HashMap<Program, Arc<str>>>> = Mutex::new(None);
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = compiled.get_or_insert_default();
        if let Some(ptx) = compiled.get(&self) {
            return Ok(Arc::clone(ptx));
        }
        let options = CompileOptions {
            arch: Some(ARCHITECTURE),
            options: self.options(),
            name: Some(self.name()),
            ..CompileOptions::default()
        };
        let ptx = compile_ptx_with_opts(self.source(), options).map_err(|error| {
            Error::Msg(format!("kernel {} does not compile: {error:?}", self.name()))
        })?;
        let ptx: Arc<str> = ptx.to_src().into();
        compiled.insert(self, Arc::clone(&ptx));
        Ok(ptx)
    }
}
