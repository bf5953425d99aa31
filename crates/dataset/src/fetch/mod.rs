//! Downloads of the public data sets.
