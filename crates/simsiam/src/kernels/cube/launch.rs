//! What every launch of a kernel needs.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::future::block_on;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// The type of a tensor's numbers, as kernels are told.
pub(super) fn elem_type(tensor: &CubeTensor) -> ElemType {
    match tensor.dtype {
        DType::F32 => f32::elem_type_native(),
        DType::BF16 => half::bf16::elem_type_native(),
        dtype => unreachable!("activations are f32 or bf16, not {dtype:?}"),
    }
}

/// How many of `channels` numbers a unit loads at once: as many as the widest load takes.
pub(super) fn widest_vector(tensor: &CubeTensor, channels: usize) -> usize {
    1 << channels.trailing_zeros().min(load_numbers(tensor.dtype).ilog2())
}

/// Numbers of the widest load.
pub(super) fn load_numbers(dtype: DType) -> usize {
    const LOAD_BYTES: usize = 16;
    LOAD_BYTES / dtype.size()
}

/// A contiguous tensor of `x`'s shape and type, to be written.
pub(super) fn like(x: &CubeTensor) -> CubeTensor {
    with_shape(x, x.shape())
}

/// A contiguous tensor of `x`'s type, to be written.
pub(super) fn with_shape(x: &CubeTensor, shape: Shape) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape, x.dtype)
}

/// The `f32` numbers of `x`, once they are there.
pub(super) fn to_host(x: &CubeTensor) -> Vec<f32> {
    let data = block_on(CubeBackend::float_into_data(x.clone())).expect("a GPU that fails ends its worker");
    data.try_into_vec().expect("the tensor is of f32")
}

/// These numbers beside `x`.
pub(super) fn from_host(values: Vec<f32>, x: &CubeTensor) -> CubeTensor {
    let length = values.len();
    CubeBackend::float_from_data(TensorData::new(values, [length]), &x.device)
}

/// `f32` numbers beside `x`, to be written.
pub(super) fn floats(x: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape.into(), DType::F32)
}
