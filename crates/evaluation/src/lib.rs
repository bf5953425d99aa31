//! Evaluation: what a pre-trained encoder is worth, in numbers that can be computed again.
//!
//! An [`Encoder`] is the weights of a checkpoint, proved whole, or the random ones of step 0. A [`Job`] looks
//! at images with it, frozen, and classifies its features: [`Job::knn`] by nearest neighbours,
//! [`Job::linear`] by a logistic regression, [`Job::linear_official`] by a layer trained as SimSiam's authors
//! do it; [`Job::quality`] needs no labels. [`Job::finetune`] is another thing: it trains the whole network
//! on. What comes out is a [`Card`]: the figures with their whole protocol and the hashes of weights and data,
//! which [`Job::verify`] computes again; [`Findings`] are a card with its picture. [`export()`] writes the backbone for other programs and [`import()`]
//! reads theirs; [`embed()`] writes the features themselves, and [`write_report`] a page about a whole run.
//!
//! This crate knows nothing of workers or the network; it reads what a run leaves behind. Start with
//! [`Encoder::open`] and [`Job`].

mod aside;
mod card;
mod data_source;
mod eigenvalues;
mod eigenvectors;
mod embed;
mod encoder;
mod error;
mod export;
mod features;
mod findings;
mod finetune;
mod folds;
mod import;
mod job;
mod knn;
mod labelled;
mod matrix;
mod neighbour_picture;
mod official;
mod probe;
mod quality;
mod report;
mod run;
mod scores;
mod summary;
#[cfg(test)]
mod testing;
mod thumbnails;
mod training_images;

pub use card::{Card, DataIdentity, Difference, FoldResult, Measurement, Seconds, VotesScores};
pub use data_source::{DataSource, present_place};
pub use embed::{Embedded, embed};
pub use encoder::{Encoder, WeightsIdentity};
pub use error::EvaluationError;
pub use export::{Names, before_loading, export};
pub use features::{Frozen, Input, InputIdentity};
pub use findings::Findings;
pub use finetune::{FinetuneFit, FinetuneSettings};
pub use import::{Imported, import};
pub use job::{Job, Phase, Progress, QualitySettings};
pub use knn::{Neighbour, Neighbours, check_votes};
pub use labelled::ImagesIdentity;
pub use matrix::Matrix;
pub use official::{OfficialFit, OfficialSettings};
pub use probe::{Classifier, Fit, GridPoint, Optimizer, Preparation, Probe, ProbeSettings, Split, fit};
pub use quality::Quality;
pub use recipe::Votes;
pub use report::{ReportRequest, write_report};
pub use run::{End, Published, Story};
pub use scores::{Answer, ClassScore, Proportion, Scores};
pub use summary::Summary;
pub use training_images::Augmentation;
