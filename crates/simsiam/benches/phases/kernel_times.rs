//! Which kernels of a GPU some work was made of, and how long they took.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cubecl_runtime::config::{TypeNameFormatLevel, type_name_format};
use cubecl_runtime::logging::{LaunchObservation, LaunchObserver, ProfileDuration, TimingRequest};

#[derive(Default)]
struct Launches(Mutex<Vec<(&'static str, ProfileDuration)>>);

impl LaunchObserver for Launches {
    fn launched(&self, _kernel: &'static str) {}

    fn timing(&self) -> TimingRequest {
        TimingRequest::Deferred
    }

    fn profiled(&self, kernel: &'static str, profile: ProfileDuration) {
        self.0.lock().expect("nothing panics with it").push((kernel, profile));
    }
}

/// Does `work`, and prints the `count` kernels that took most of it.
pub(crate) fn print(count: usize, work: impl FnOnce()) {
    let launches = Arc::new(Launches::default());
    let watching = LaunchObservation::new(launches.clone());
    work();
    drop(watching);

    let mut kernels: HashMap<&str, (usize, f64)> = HashMap::new();
    let mut all = (0, 0.0);
    for (name, profile) in launches.0.lock().expect("nothing panics with it").drain(..) {
        let Some(ticks) = cubecl::future::block_on(profile.resolve()) else { continue };
        let seconds = ticks.duration().as_secs_f64();
        for sum in [kernels.entry(name).or_default(), &mut all] {
            sum.0 += 1;
            sum.1 += seconds;
        }
    }
    let mut kernels: Vec<_> = kernels.into_iter().collect();
    kernels.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    println!("{:9.2} ms in {} kernels", all.1 * 1e3, all.0);
    for (name, (launches, seconds)) in kernels.into_iter().take(count) {
        let name = type_name_format(name, TypeNameFormatLevel::Balanced);
        println!("{:9.2} ms in {launches:4} x {name}", seconds * 1e3);
    }
}
