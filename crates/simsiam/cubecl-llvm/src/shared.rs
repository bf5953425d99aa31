//! Module `shared` of the published package.

pub mod lowered_features {
    //! Which of a device's features LLVM could not use.

    use cubecl_core::ir::DeviceProperties;

    /// The processors whose features are looked at.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum GpuTarget {
        Nvptx,
    }

    /// Takes nothing away: CUDA C++ can use all of them.
    pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
}
