//! The page: what it says before its script fills it, in the order in which a person who watches asks.

use std::path::Path;

use maud::{DOCTYPE, Markup, html};
use recipe::{Data, Recipe};

use crate::action::Action;
use crate::site::Site;
use crate::words::count;

pub(crate) const STYLE: &str = include_str!("style.css");
pub(crate) const SCRIPT: &str = include_str!("dashboard.js");

/// Sections by their places in the page's address.
const SECTIONS: [(&str, &str); 5] = [
    ("training", "Training"),
    ("workers", "Workers"),
    ("timeline", "Timeline"),
    ("evaluations", "Evaluations"),
    ("pictures", "Pictures"),
];

/// The parts of a step, with the colours of the report.
const PARTS: [(&str, u8); 6] =
    [("data", 9), ("forward", 0), ("backward", 4), ("all-reduce", 1), ("update", 7), ("the rest", 3)];

/// The whole page.
pub(crate) fn render(site: &Site) -> String {
    let recipe = &site.frame.recipe;
    let content = html! {
        a.skip href="#content" { "To the content" }
        header {
            p.kind { "SimSiam run · " span #state { "…" } " " span #connection.connection role="status" { "connecting" } }
            h1 { (recipe.name) }
            p.subtitle { (subtitle(recipe)) }
            div #progress.progress role="progressbar" aria-label="Steps done" aria-valuemin="0" aria-valuemax="100" { i {} }
            p #health.health.doubtful { "…" }
            dl.tiles {
                (tile("step", "steps"))
                (tile("remaining", "time left"))
                (tile("loss", "loss"))
                (tile("collapse_level", "collapse level"))
                (tile("knn", "kNN"))
                (tile("images_per_second", "images per second"))
            }
            (actions())
            nav aria-label="Sections" { @for (id, title) in SECTIONS { a href={ "#" (id) } { (title) } } }
        }
        main id="content" { @for (id, title) in SECTIONS { (section(site, id, title)) } }
        (confirmation())
        footer { "Version " (site.program_version) ". Served by the coordinator of this run from its own files; this page loads nothing from elsewhere." }
        div #tip role="status" hidden {}
        noscript { p.missing { "This page is filled by its script. The same figures without one: " code { "coordinator status" } ", or " a href="/api/status" { "/api/status" } "." } }
    };
    frame(&format!("{} · SimSiam", recipe.name), Some(site), &content)
}

/// The form for the token.
pub(crate) fn sign_in(is_wrong: bool) -> String {
    let content = html! {
        main.sign-in {
            h1 { "SimSiam run" }
            p { "Who shows the token of the run may see it. It is in the coordinator's token file." }
            form method="post" action="/sign-in" {
                label for="token" { "Token" }
                input #token name="token" type="password" autocomplete="current-password" required autofocus;
                button type="submit" { "Open" }
            }
            @if is_wrong { p.health.bad role="alert" { "This is not the token of this run." } }
        }
    };
    frame("SimSiam run", None, &content)
}

/// The value of a field that a form has sent: `+` is a space, `%2B` a plus.
pub(crate) fn decode_form(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'%').then(|| std::str::from_utf8(after.get(..2)?).ok()).flatten();
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(if first == b'+' { b' ' } else { first });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn frame(title: &str, site: Option<&Site>, content: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                link rel="icon" href="data:,";
                link rel="stylesheet" href="/style.css";
                @if let Some(site) = site {
                    meta name="secret" content=(site.access.secret());
                    meta name="instance" content=(site.instance);
                    script src="/dashboard.js" defer {}
                }
            }
            body { (content) }
        }
    };
    page.into_string()
}

fn tile(id: &str, name: &str) -> Markup {
    html! { div { dt { (name) } dd id={ "tile-" (id) } { "–" } dd.note id={ "note-" (id) } {} } }
}

fn actions() -> Markup {
    html! {
        div.actions role="group" aria-label="Actions" {
            @for action in Action::OF_THE_RUN {
                @let words = action.words();
                button type="button" data-action=(action.name()) data-question=(words.question) disabled { (words.label) }
            }
            span #answer role="status" {}
        }
    }
}

fn confirmation() -> Markup {
    html! {
        dialog #confirm aria-labelledby="confirm-title" {
            form method="dialog" {
                h2 #confirm-title {}
                p #confirm-question {}
                div.actions { button value="" { "Cancel" } button.primary value="yes" #confirm-yes {} }
            }
        }
    }
}

fn section(site: &Site, id: &str, title: &str) -> Markup {
    html! {
        section id=(id) aria-labelledby={ (id) "-title" } {
            h2 id={ (id) "-title" } { (title) }
            @match id {
                "training" => (training()),
                "workers" => (workers()),
                "timeline" => (timeline()),
                "evaluations" => div #cards { p.missing { "…" } },
                _ => (pictures(site.views.is_some())),
            }
        }
    }
}

fn training() -> Markup {
    html! {
        div.bar {
            div.choice role="group" aria-label="Range" {
                button type="button" data-range="all" aria-pressed="true" { "Whole run" }
                button type="button" data-range="1000" aria-pressed="false" { "Last 1000 steps" }
                button type="button" data-range="100" aria-pressed="false" { "Last 100" }
            }
            span #range.caption { span #chosen role="status" {} span #of {} }
        }
        p.caption.hint { "Drag across a chart to look closer, double-click to see the whole run. With the keyboard: arrows move the rule, + and − zoom, 0 shows all." }
        div #charts.charts {}
    }
}

fn workers() -> Markup {
    html! {
        p #workers-caption.caption {}
        div.legend.parts aria-hidden="true" {
            @for (name, colour) in PARTS { span class={ "c" (colour) } { i.swatch {} (name) } }
        }
        div.scroll tabindex="0" role="region" aria-label="Workers" {
            table #workers-table {
                thead { tr { th { "worker" } th { "shards" } th.number { "images/s" } th { "where a step's time goes" } th.number { "step" } th.number { "to the others" } th.number { "last sign of life" } th { span.hide { "actions" } } } }
                // Rows are made by the script, with a button each.
                tbody data-question=(Action::Drain { worker: 0 }.words().question) data-label=(Action::Drain { worker: 0 }.words().label) {}
            }
        }
    }
}

fn timeline() -> Markup {
    html! {
        figure.chart.strip { figcaption { span.title { "Generations and faults" } span.legend { span { i.swatch.square.span {} "generation, as high as it has workers" } span { i.swatch.fault {} "fault" } span { i.swatch.coordinator {} "coordinator" } } } div #strip {} }
        div.bar {
            div.choice role="group" aria-label="Which moments" {
                button type="button" data-moments="all" aria-pressed="true" { "Everything" }
                button type="button" data-moments="fault" aria-pressed="false" { "Faults" }
            }
        }
        ol #moments.timeline {}
        button type="button" #more hidden {}
    }
}

fn pictures(has_views: bool) -> Markup {
    html! {
        @if has_views {
            figure.views {
                img #views alt="Some images, each with the pairs of views that the network sees of it in this epoch and the next ones";
                figcaption { "Some images, and the pairs of views that the network sees of them in this epoch and the next ones." }
            }
        }
        figure #neighbours-figure.views hidden {
            img #neighbours alt="Some test images, each in a row with the training images that the network holds for most like it";
            figcaption {
                "Some test images, each with the training images that the network holds for most like it, the nearest first. Those of its class have a frame. "
                label { "Weights: " input #neighbours-of type="range" min="0" value="0"; " " span #neighbours-weights {} }
            }
        }
        p #report-there hidden {
            "The report of this run has the pictures: "
            a href="/report#views" { "the views as the network sees them" } ", "
            a href="/report#neighbours" { "nearest neighbours" } " and "
            a href="/report#map" { "a map of the test images" } ". It is as old as its making; "
            code { "evaluate report RUN" } " makes it anew."
        }
        p #report-missing.missing {
            "There is no report yet. " code { "evaluate report RUN" } " makes one, also while the run goes on: the views as the network sees them, nearest neighbours and a map of the test images. It then opens from here."
        }
    }
}

/// What the run trains, on what, for how long.
fn subtitle(recipe: &Recipe) -> String {
    let training = &recipe.training;
    let network = serde_json::to_value(recipe.model.backbone).unwrap_or_default();
    let network = network.as_str().unwrap_or_default().replace("resnet", "ResNet-");
    let width =
        if recipe.model.width == 64 { String::new() } else { format!(", {} wide", recipe.model.width) };
    format!(
        "{network}{width} on {} · {} epochs · batch {} in {} shards · seed {}",
        images(&recipe.data),
        training.epochs,
        training.batch,
        training.shards,
        recipe.seed
    )
}

fn images(data: &Data) -> String {
    match data {
        Data::Synthetic { images } => format!("{} drawn images", count(u64::from(*images))),
        Data::Stl10 { .. } => "STL-10".to_string(),
        Data::Cifar10 { .. } => "CIFAR-10".to_string(),
        Data::Folder { path, .. } => {
            let name = path.file_name().unwrap_or_else(|| Path::new("images").as_os_str());
            format!("the folder {}", name.to_string_lossy())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_as_browsers_write_it() {
        for (value, expected) in [
            ("abc", "abc"),
            ("a%2Bb%26", "a+b&"),
            ("a+b", "a b"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("", ""),
        ] {
            assert_eq!(decode_form(value), expected);
        }
    }

    #[test]
    fn a_run_is_told_in_a_line() {
        let recipe = Recipe::from_toml(recipe::QUICKSTART, &[]).unwrap();
        assert_eq!(
            subtitle(&recipe),
            "ResNet-10, 16 wide on 2048 drawn images · 30 epochs · batch 128 in 4 shards · seed 0"
        );
    }
}
