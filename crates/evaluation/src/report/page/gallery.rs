//! What the features say of pictures.

use maud::{Markup, html};

use super::super::chart::{Scatter, colour, number, scatter};
use super::super::pictures::{Gallery, Picture, THUMBNAIL_PX, Viewed};

/// Small pictures are enlarged to this side.
const SHOWN_PX: u32 = 64;

/// Why there is no map and no neighbour.
pub(super) fn missing(reason: &str) -> Markup {
    html! {
        p.missing {
            "It takes a checkpoint and labelled images: " (reason) ". Name labelled images of another place by "
            code { "evaluate report RUN --data SOURCE:FOLDER" } "."
        }
    }
}

/// Both maps, and the classes' names.
pub(super) fn map(gallery: &Gallery) -> Markup {
    let (classes, count) = (gallery.class_names.len(), gallery.labels.len());
    let draw = |label: &str, points: &[[f32; 2]], same_scale| {
        scatter(&Scatter { label, points, labels: &gallery.labels, classes, same_scale })
    };
    let share = |axis: usize| number(100.0 * gallery.components.shares[axis], 1);
    html! {
        p.caption {
            (number(count as f64, 0)) " test images of " (gallery.data) " as " (gallery.weights) " sees them, coloured by their class, which the network was "
            "never told. Choose a class to see it alone; point at an image to see it."
        }
        div.maps style={ "--sheet:url(" (gallery.thumbnails.uri) ")" } data-columns=(gallery.thumbnails.columns) data-side=(THUMBNAIL_PX)
            data-rows=(count.div_ceil(gallery.thumbnails.columns as usize)) {
            figure {
                (draw("t-SNE of the features of the test images, coloured by class.", &gallery.neighbourhoods.points, true))
                figcaption { strong { "t-SNE" } " keeps neighbourhoods: what is near here is near among the features. Distances between groups mean little." }
            }
            figure {
                (draw("Principal components of the features of the test images, coloured by class.", &gallery.components.map.points, true))
                figcaption { strong { "Principal components" } " keep distances: the two directions of greatest variance, " (share(0)) " and " (share(1)) " % of it." }
            }
            div.classes role="group" aria-label="Classes" {
                @for (class, name) in gallery.class_names.iter().enumerate() {
                    button type="button" class=(colour(class)) data-class=(class) aria-pressed="false" { i.swatch.square[class / 10 % 3 == 1].triangle[class / 10 % 3 == 2] {} (name) }
                }
            }
        }
    }
}

/// Queries, each with its neighbours.
pub(super) fn neighbours(gallery: &Gallery) -> Markup {
    let near = || {
        gallery.queries.iter().flat_map(|query| query.neighbours.iter().map(|near| near.class == query.class))
    };
    let (same, all) = (near().filter(|same| *same).count(), near().count());
    let name = |class: u8| gallery.class_names.get(usize::from(class)).map_or("?", String::as_str);
    html! {
        p.caption {
            "A test image of " (gallery.data) " on the left, and the training images that " (gallery.weights) " holds for most like it, of "
            (number(gallery.bank_images as f64, 0)) ", with the cosine of their features. " (same) " of " (all) " are of its class: "
            span.key.same { "same" } " " span.key.other { "another" } "."
        }
        div.queries {
            @for query in &gallery.queries {
                div.query {
                    figure.asked { (picture(&query.picture, name(query.class))) figcaption { (name(query.class)) } }
                    div.near {
                        @for near in &query.neighbours {
                            @let is_same = near.class == query.class;
                            figure.same[is_same].other[!is_same] {
                                (picture(&near.picture, &format!("{}, {}", name(near.class), if is_same { "the same class" } else { "another class" })))
                                figcaption { span.class { (name(near.class)) } " " span.number { (number(f64::from(near.similarity), 2)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Images and the pairs of views that the first epochs make of them.
pub(super) fn views(viewed: &[Viewed]) -> Markup {
    html! {
        p.caption {
            "Training images on the left, and the pairs of views that the first epochs made of them, before they are normalised. The loss "
            "asks the network to say the same of both views of a pair."
        }
        div.views {
            @for (place, one) in viewed.iter().enumerate() {
                div.viewed {
                    figure { (picture(&one.image, &format!("image {}", place + 1))) figcaption { "image" } }
                    @for (epoch, pair) in one.views.chunks(2).enumerate() {
                        figure.pair {
                            @for (number, view) in pair.iter().enumerate() {
                                (picture(view, &format!("image {}, epoch {}, view {}", place + 1, epoch + 1, number + 1)))
                            }
                            figcaption { "epoch " (epoch + 1) }
                        }
                    }
                }
            }
        }
    }
}

fn picture(picture: &Picture, alt: &str) -> Markup {
    let side = picture.side_px.max(SHOWN_PX);
    html! { img.pixelated[picture.side_px < SHOWN_PX] src=(picture.uri) alt=(alt) title=(alt) width=(side) height=(side) loading="lazy"; }
}
