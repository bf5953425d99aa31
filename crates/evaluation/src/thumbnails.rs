//! Images as people look at them: all of one size, drawn as the network sees them before they are normalised.

use dataset::Images;
use dataset::views::{Scratch, ViewMaker};
use image::RgbImage;
use recipe::Views;

/// Draws images as squares of one side. The buffers serve all of them.
pub(crate) struct Thumbnails<'a> {
    images: &'a Images,
    maker: ViewMaker,
    scratch: Scratch,
    view: Vec<f32>,
}

impl<'a> Thumbnails<'a> {
    pub(crate) fn new(images: &'a Images, views: &Views, side_px: u32) -> Thumbnails<'a> {
        let maker = ViewMaker::new(&Views { crop_px: side_px, ..views.clone() }, images.geometry());
        let view = vec![0.0; maker.view_len()];
        Thumbnails { images, maker, scratch: Scratch::default(), view }
    }

    /// The largest square in the middle of that image.
    pub(crate) fn of(&mut self, index: u64) -> RgbImage {
        self.maker.render_plain(self.images.record(index), &mut self.scratch, &mut self.view);
        self.maker.picture(&self.view)
    }
}
