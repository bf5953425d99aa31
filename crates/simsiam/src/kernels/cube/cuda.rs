//! Kernels in CUDA C++, compiled when they are first launched, in the order of all other work of their thread.

use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::metadata::Info;
use cubecl::ir::{ElemType, Scope, UIntKind};
use cubecl::prelude::*;
use cubecl::server::{KernelArguments, MetadataBindingInfo};
use cubecl::{CubeKernel, PrecompiledSource};

/// A kernel's text.
pub(super) struct Source {
    /// Of the function in it.
    name: &'static str,
    text: &'static str,
    /// By which compiled kernels are told apart.
    hash: [u8; 32],
    threads: u32,
}

impl Source {
    /// The function `name` in `text`, for blocks of this many threads.
    pub(super) fn new(name: &'static str, text: &'static str, threads: u32) -> Source {
        Source { name, text, hash: blake3::hash(text.as_bytes()).into(), threads }
    }

    /// Launches it, with the text's constants set as `defines` says. It takes the buffers, then the parameters.
    ///
    /// The kernel must not touch memory outside the buffers: nothing here can see to that.
    pub(super) fn launch(
        &'static self,
        defines: &[(&'static str, usize)],
        blocks: [usize; 3],
        buffers: &[&CubeTensor],
        parameters: Parameters,
    ) {
        // What CUDA allows, whatever the GPU: a larger grid would not be launched, and what it was to write would stay as
        // it was.
        const MOST_BLOCKS: [usize; 3] = [(1 << 31) - 1, 65_535, 65_535];
        let fits = blocks.iter().zip(MOST_BLOCKS).all(|(count, most)| *count <= most);
        assert!(fits, "a grid of {blocks:?} blocks is more than {MOST_BLOCKS:?}: raise training.shards");
        let client = buffers[0].client.clone();
        let [x, y, z] = blocks.map(|count| count as u32);
        let bindings = buffers.iter().map(|tensor| tensor.handle.clone().binding()).collect();
        let arguments = KernelArguments::new().with_buffers(bindings).with_info(parameters.into_info());
        let kernel = Kernel { source: self, defines: defines.to_vec() };
        client.launch(Box::new(kernel), CubeCount::Static(x, y, z), arguments);
    }
}

/// A kernel's text with everything that it is compiled for.
struct Kernel {
    source: &'static Source,
    defines: Vec<(&'static str, usize)>,
}

impl Kernel {
    fn cube(&self) -> CubeDim {
        CubeDim::new_1d(self.source.threads)
    }
}

impl KernelMetadata for Kernel {
    fn name(&self) -> &'static str {
        self.source.name
    }

    fn id(&self) -> KernelId {
        let info = (self.source.name, self.source.hash, self.defines.clone());
        KernelId::new::<Self>().info(info).cube_dim(self.cube().0)
    }

    fn address_type(&self) -> ElemType {
        UIntKind::U32.into()
    }
}

impl CubeKernel for Kernel {
    /// Not what is compiled: that is [`source`](Self::source).
    fn define(&self) -> KernelDefinition {
        let settings = KernelSettings::new(self.cube().0, ExecutionMode::Unchecked, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), info: Info::default(), settings }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        let defines = self.defines.iter().map(|(name, value)| format!("#define {name} {value}\n"));
        let source = defines.chain([self.source.text.to_string()]).collect();
        Some(PrecompiledSource { source, entrypoint_name: self.source.name.to_string(), lang: "cuda" })
    }
}

/// The numbers that a kernel takes as one structure of `int`s and `float`s.
#[derive(Default)]
pub(super) struct Parameters(Vec<u32>);

impl Parameters {
    pub(super) fn push(&mut self, numbers: impl IntoIterator<Item = usize>) {
        self.0.extend(numbers.into_iter().map(|number| number as u32));
    }

    pub(super) fn push_signed(&mut self, numbers: impl IntoIterator<Item = i32>) {
        self.0.extend(numbers.into_iter().map(|number| number as u32));
    }

    pub(super) fn push_float(&mut self, number: f32) {
        self.0.push(number.to_bits());
    }

    /// What `tensor_cores.cuh` calls a `Divisor`.
    pub(super) fn push_divisor(&mut self, divisor: usize) {
        let (factor, shift) = match divisor.next_power_of_two().ilog2() {
            0 => (0, -1),
            // Rounded up: exact for every dividend below 2^31.
            bits => ((1_u64 << (31 + bits)).div_ceil(divisor as u64) as u32, bits as i32 - 1),
        };
        self.0.extend([divisor as u32, factor, shift as u32]);
    }

    fn into_info(mut self) -> MetadataBindingInfo {
        if !self.0.len().is_multiple_of(2) {
            self.0.push(0);
        }
        let words = self.0.chunks_exact(2).map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32);
        let words: Vec<u64> = words.collect();
        // None of it is dynamic: all goes with the launch.
        let end = words.len();
        MetadataBindingInfo::new(words, end)
    }
}
