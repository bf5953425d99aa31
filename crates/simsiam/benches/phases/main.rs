//! Where the time of one training step goes on a device, a line for each network, without a criterion between: a GPU
//! is rented by the minute.
//!
//! `cargo bench -p simsiam --bench phases -- resnet18,96,256,bf16 resnet50,96,256,bf16`; `SIMSIAM_DEVICE` names the
//! device, `SIMSIAM_STEPS` how many steps are timed, and `SIMSIAM_KERNELS=20` lists the 20 kernels of a GPU that took most
//! of one more step.

#[cfg(feature = "cuda")]
mod kernel_times;

use std::str::FromStr;
use std::time::Instant;

use recipe::{Draws, Purpose, Recipe};
use simsiam::{Bound, Device, DeviceName, Folded, PhaseSeconds, State, Trainer, Views};

/// What a line is for: `backbone,crop side,batch,precision`.
struct Case {
    backbone: String,
    side: usize,
    batch: usize,
    precision: String,
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Case, String> {
        let expected = || format!("expected backbone,crop side,batch,precision, found {text:?}");
        let parts: Vec<&str> = text.split(',').collect();
        let [backbone, side, batch, precision] = parts[..] else { return Err(expected()) };
        Ok(Case {
            backbone: backbone.to_string(),
            side: side.parse().map_err(|_| expected())?,
            batch: batch.parse().map_err(|_| expected())?,
            precision: precision.to_string(),
        })
    }
}

impl Case {
    fn recipe(&self) -> Recipe {
        let Case { backbone, side, batch, precision } = self;
        let (stem, layers) = (if *side <= 32 { "small" } else { "imagenet" }, projector_layers(backbone));
        let set = [
            format!("model.backbone={backbone}"),
            format!("model.stem={stem}"),
            format!("model.projector_layers={layers}"),
            "model.projector_dim=2048".into(),
            "model.predictor_dim=512".into(),
            "model.width=64".into(),
            format!("views.crop_px={side}"),
            format!("training.batch={batch}"),
            format!("training.precision={precision}"),
            "training.shards=1".into(),
        ];
        Recipe::from_toml(recipe::QUICKSTART, &set).unwrap_or_else(|error| panic!("{error}"))
    }

    fn measure(&self, device: &Device, steps: usize) {
        let Case { backbone, side, batch, precision } = self;
        let trainer = Trainer::new(&self.recipe(), *batch as u64, device.clone());
        let mut replica = trainer.place(State::initial(trainer.layout(), 0));
        let mut bucket = vec![0.0; trainer.bucket().values()];
        let views = trainer.loader().load([noise(*batch, *side, 0), noise(*batch, *side, 1)].concat());
        let mut times = Vec::new();
        let started = Instant::now();
        let mut first_s = 0.0;
        // Learning rate 0 would hide what an update costs; a tiny one keeps noise from blowing up.
        for step in 0..steps + steps.div_ceil(4) {
            let begun = Instant::now();
            let network = trainer.bind(&replica);
            let bound = begun.elapsed().as_secs_f64();
            let (phases, folded) = shard(&trainer, &network, &views, &mut bucket);
            drop(network);
            let computed = begun.elapsed().as_secs_f64();
            trainer.commit(&mut replica, &folded, trainer.schedule().at(0)).expect("noise is finite");
            let whole = begun.elapsed().as_secs_f64();
            if step == 0 {
                first_s = started.elapsed().as_secs_f64();
            }
            times.push([whole, bound, phases.forward, phases.backward, whole - computed]);
        }
        #[cfg(feature = "cuda")]
        if let Ok(count) = std::env::var("SIMSIAM_KERNELS") {
            kernel_times::print(count.parse().expect("a number of kernels"), || {
                let network = trainer.bind(&replica);
                let (_, folded) = shard(&trainer, &network, &views, &mut bucket);
                drop(network);
                trainer.commit(&mut replica, &folded, trainer.schedule().at(0)).expect("noise is finite");
            });
        }
        let mut timed = times.split_off(steps.div_ceil(4));
        timed.sort_by(|a, b| a[0].total_cmp(&b[0]));
        let [whole, bind, forward, backward, commit] = timed[timed.len() / 2].map(|seconds| seconds * 1e3);
        println!(
            "{backbone:9} {side:3} px, batch {batch:4}, {precision:4}: first {first_s:6.2} s, step {whole:8.2} ms \
             (bind {bind:.2}, forward {forward:.2}, backward {backward:.2}, commit {commit:.2}), \
             {:8.1} images/s",
            *batch as f64 / whole * 1e3
        );
    }
}

/// Forward, backward and the sum over one shard, with the bucket where a worker that is alone has it.
fn shard<'a>(
    trainer: &'a Trainer,
    network: &Bound,
    views: &Views,
    bucket: &'a mut [f32],
) -> (PhaseSeconds, Folded<'a>) {
    let done = if trainer.trains_on_device() {
        let (sum, phases) = trainer.forward_backward_on_device(network, 0, views.clone(), false);
        trainer.bucket().read_on_device(sum).map(|folded| (phases, folded))
    } else {
        let done = trainer.forward_backward(network, 0, views.clone(), false, bucket);
        done.map(|phases| (phases, trainer.bucket().read(bucket)))
    };
    done.unwrap_or_else(|error| panic!("{error}"))
}

fn projector_layers(backbone: &str) -> u32 {
    if backbone == "resnet50" { 3 } else { 2 }
}

fn noise(batch: usize, side: usize, view: u64) -> Vec<f32> {
    let mut draws = Draws::new(0, Purpose::Weights, 0, 0, view);
    (0..batch * 3 * side * side).map(|_| draws.normal()).collect()
}

fn main() {
    let device: DeviceName = std::env::var("SIMSIAM_DEVICE")
        .map_or(DeviceName::Cpu, |name| name.parse().unwrap_or_else(|error| panic!("{error}")));
    let steps = std::env::var("SIMSIAM_STEPS").map_or(20, |steps| steps.parse().expect("a number of steps"));
    let opening = Instant::now();
    let device = device.open(&std::env::temp_dir()).unwrap_or_else(|error| panic!("{error}"));
    println!("opened in {:.2} s: {}", opening.elapsed().as_secs_f64(), simsiam::arithmetic(&device));
    for case in std::env::args().skip(1).filter(|argument| !argument.starts_with('-')) {
        case.parse::<Case>().unwrap_or_else(|error| panic!("{error}")).measure(&device, steps);
    }
}
