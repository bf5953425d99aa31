//! Module `nvptx` of the published package.

pub mod ptx_version {
    //! Versions of PTX, which no driver is asked for here.

    use std::fmt;

    /// A version of PTX. Nothing ever makes one.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PtxVersion(u32);

    impl PtxVersion {
        pub fn for_driver(_driver: i32) -> Option<Self> {
            None
        }
    }

    impl fmt::Display for PtxVersion {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "ptx{}", self.0)
        }
    }
}
