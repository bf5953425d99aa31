//! In place of `shared_memory/` on systems that lack what it is made of: there is nothing to offer or to take, so groups
//! with a member here fold over TCP.

use crate::mesh::Mesh;
use crate::{Collective, Group, Key, Limits};
use rustix::event::PollFd;

/// Bytes of the random part of an offer's name.
pub(crate) const NAME_LEN: usize = 16;

const MISSING: &str = "only on Linux do workers share memory";

/// There is none.
pub(crate) enum Offer {}

/// There is none.
pub(crate) enum Segment {}

impl Offer {
    pub(crate) fn make(_key: &Key, _group: &Group, _bucket_len: usize) -> Result<Self, String> {
        Err(MISSING.to_string())
    }

    pub(crate) fn name(&self) -> [u8; NAME_LEN] {
        match *self {}
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = PollFd<'_>> {
        match *self {}
        #[expect(unreachable_code, reason = "names the type of what is never returned")]
        std::iter::empty()
    }

    pub(crate) fn hand_out(&mut self) {
        match *self {}
    }

    pub(crate) fn into_segment(self) -> Segment {
        match self {}
    }
}

impl Segment {
    pub(crate) fn take(
        _name: &[u8; NAME_LEN],
        _key: &Key,
        _group: &Group,
        _bucket_len: usize,
    ) -> Result<Self, String> {
        Err(MISSING.to_string())
    }
}

pub(crate) fn collective(segment: Segment, _mesh: Mesh, _group: Group, _limits: Limits) -> Collective {
    match segment {}
}
