//! SimSiam learns, and collapses without its stop-gradient (figure 2 of the paper).

use coordinator::{Outcome, StepMetrics};

use crate::cluster::{Disturbance, TestRun, Wiring, quickstart};

const CHANGES: &[&str] = &[
    "data.images=512",
    "training.batch=64",
    "training.shards=2",
    "training.epochs=40",
    "views.crop_px=24",
    "model.width=8",
    "model.projector_dim=64",
    "model.predictor_dim=16",
    "optimizer.base_learning_rate=0.4",
];

async fn train(changes: &[&str]) -> Vec<StepMetrics> {
    let changes: Vec<&str> = CHANGES.iter().chain(changes).copied().collect();
    let trained = TestRun::new(quickstart(&changes)).train(2, Wiring::Loopback, Disturbance::None).await;
    assert!(matches!(trained.outcome, Outcome::Completed { .. }), "{:?}", trained.outcome);
    trained.steps
}

/// The mean of a monitor over the last epoch.
fn at_the_end(steps: &[StepMetrics], of: fn(&StepMetrics) -> f64) -> f64 {
    let last = &steps[steps.len() - 8..];
    last.iter().map(of).sum::<f64>() / last.len() as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_falls_and_the_views_stay_apart() {
    let steps = train(&[]).await;
    let (loss, level) =
        (at_the_end(&steps, |step| step.loss), at_the_end(&steps, |step| step.collapse_level));
    assert!(loss < steps[0].loss - 0.2, "the loss went from {} to {loss}", steps[0].loss);
    assert!(loss > -0.8, "the loss is {loss}, as good as that of a collapse");
    assert!(level > 0.8, "collapse level {level}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_stop_gradient_it_collapses() {
    let steps = train(&["training.stop_gradient=false"]).await;
    let (loss, level) =
        (at_the_end(&steps, |step| step.loss), at_the_end(&steps, |step| step.collapse_level));
    // In these few steps it comes far, though not all the way: -1 and 0.
    assert!(loss < -0.85, "the loss is {loss}, but a collapse makes it all but -1");
    assert!(level < 0.5, "collapse level {level}");
}
