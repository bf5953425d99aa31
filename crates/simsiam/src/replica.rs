//! A run's state where it is trained.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use crate::flat::Flat;
use crate::sgd;
use crate::state::State;
use crate::step::{DeviceFailure, read};

/// A state and where it is trained. The CPU changes the numbers where they lie; a GPU has weights and momentum in its
/// own memory, ahead of those on the host until someone asks.
pub struct Replica {
    /// Its weights and momentum may be those of an earlier step; the rest, which is little, never is.
    pub(crate) host: State,
    pub(crate) device: Option<OnDevice>,
}

/// Flat and without gradients.
pub(crate) struct OnDevice {
    pub(crate) weights: Tensor<1>,
    pub(crate) momentum: Tensor<1>,
    /// Whether the host has the same.
    pub(crate) is_fetched: bool,
}

impl Replica {
    /// `state`, trained in the host's memory.
    pub(crate) fn on_host(state: State) -> Replica {
        Replica { host: state, device: None }
    }

    /// `state`, trained in the memory of `device`.
    pub(crate) fn on_device(state: State, device: &Device) -> Replica {
        let device = device.clone().without_autodiff();
        let [weights, momentum] =
            [&*state.weights, &state.momentum].map(|values| Flat::OnHost(values).on(&device));
        Replica { host: state, device: Some(OnDevice { weights, momentum, is_fetched: true }) }
    }

    /// Steps committed so far.
    pub fn step(&self) -> u64 {
        self.host.step
    }

    /// The state after the last committed step, fetched from the device if the host's is older.
    ///
    /// # Errors
    /// [`DeviceFailure`]: the device lost it.
    pub fn state(&mut self) -> Result<&State, DeviceFailure> {
        if let Some(device) = &mut self.device
            && !device.is_fetched
        {
            read(device.weights.clone(), Arc::make_mut(&mut self.host.weights))?;
            read(device.momentum.clone(), &mut self.host.momentum)?;
            device.is_fetched = true;
        }
        Ok(&self.host)
    }

    pub(crate) fn weights(&self) -> Flat<'_> {
        match &self.device {
            Some(device) => Flat::OnDevice(device.weights.clone()),
            None => Flat::OnHost(&self.host.weights),
        }
    }

    pub(crate) fn momentum(&self) -> Flat<'_> {
        match &self.device {
            Some(device) => Flat::OnDevice(device.momentum.clone()),
            None => Flat::OnHost(&self.host.momentum),
        }
    }
}

impl OnDevice {
    /// One step of SGD.
    pub(crate) fn update(&mut self, gradient: &Flat, step: &sgd::Step) {
        let gradient = gradient.on(&self.weights.device());
        [self.weights, self.momentum] =
            sgd::update_on_device(&self.weights, self.momentum.clone(), gradient, step);
        self.is_fetched = false;
    }
}
