//! The page: sections in the order in which a reader asks.

mod comparison;
mod curves;
mod gallery;
mod headline;
mod mistakes;
mod repeat;
mod results;
mod timeline;
mod words;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Report;
use super::pictures::Gallery;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// A section: its place in the page's address, its heading, its content.
struct Section {
    id: &'static str,
    title: &'static str,
    content: Markup,
}

/// The whole page.
pub(super) fn render(report: &Report) -> String {
    let sections = sections(report);
    let names: Vec<&str> = report.runs.iter().map(|run| run.name.as_str()).collect();
    let title = format!("{} · SimSiam", names.join(", "));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#content" { "To the content" }
                header {
                    @match report.runs.as_slice() {
                        [run] => (headline::of_one(run)),
                        runs => (headline::of_several(runs)),
                    }
                    nav aria-label="Sections" {
                        @for section in &sections { a href={ "#" (section.id) } { (section.title) } }
                    }
                }
                main id="content" {
                    @for section in &sections {
                        section id=(section.id) aria-labelledby={ (section.id) "-title" } {
                            h2 id={ (section.id) "-title" } { (section.title) }
                            (section.content)
                        }
                    }
                }
                footer { "Made by " code { "evaluate report" } " from the files of the run; this page loads nothing from elsewhere." }
                div #tip role="status" hidden {}
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

fn sections(report: &Report) -> Vec<Section> {
    let section = |id, title, content| Section { id, title, content };
    let mut sections = Vec::new();
    if report.runs.len() > 1 {
        sections.push(section("differences", "What differs", comparison::differences(&report.runs)));
    }
    sections.push(section("training", "Training", curves::render(&report.runs)));
    if let ([run], Some(pictures)) = (report.runs.as_slice(), &report.pictures) {
        sections.push(section("mistakes", "What is taken for what", mistakes::render(run)));
        let gallery = |show: fn(&Gallery) -> Markup| match &pictures.gallery {
            Ok(gallery) => show(gallery),
            Err(reason) => gallery::missing(reason),
        };
        sections.push(section("map", "Map of the test images", gallery(gallery::map)));
        sections.push(section("neighbours", "Nearest neighbours", gallery(gallery::neighbours)));
        let views = match &pictures.views {
            Ok(views) => gallery::views(views),
            Err(reason) => html! { p.missing { "The images of the run cannot be shown: " (reason) "." } },
        };
        sections.push(section("views", "What the network saw", views));
    }
    sections.push(section("results", "Results", results::render(&report.runs)));
    sections.push(section("timeline", "Timeline", timeline::render(&report.runs)));
    sections.push(section("repeat", "To repeat it", repeat::render(&report.runs)));
    sections
}
