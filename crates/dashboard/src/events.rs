//! What a page that is open is told, as server-sent events.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::history::{Columns, History};
use crate::site::Site;

/// How often a page is told what has come: often enough to look alive.
const INTERVAL: Duration = Duration::from_millis(500);

/// A page that takes nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells a page everything that comes after step `after`, until the run ends or the page goes away.
pub(crate) async fn tell(site: Arc<Site>, mut after: u64, page: mpsc::Sender<Bytes>) {
    let mut ending = site.ending.clone();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut life = site.record().life;
    let mut version = None;
    let hello = event("hello", &json!({ "instance": site.instance, "life": life }), after);
    if send(&page, hello).await.is_err() {
        return;
    }
    loop {
        // Asked first, so that what came before the end is told.
        let is_last = *ending.borrow();
        let mut news = String::new();
        {
            let record = site.record();
            if record.life != life || record.history.last_step() < after {
                (life, after) = (record.life, record.history.last_step());
                news += &event("again", &json!({}), after);
            }
            if let Some(text) = new_steps(&record.history, &mut after) {
                news += &text;
            }
            if version != Some(record.version) {
                version = Some(record.version);
                news += &event("story", &site.story(&record), after);
            }
        }
        news += &event("status", &site.status(), after);
        if is_last {
            news += &event("end", &json!({}), after);
        }
        if send(&page, news).await.is_err() || is_last {
            return;
        }
        tokio::select! {
            _ = ticks.tick() => {}
            changed = ending.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = page.closed() => return,
        }
    }
}

fn new_steps(history: &History, after: &mut u64) -> Option<String> {
    let last = history.last_step();
    if last <= *after {
        return None;
    }
    let found = history.after(std::mem::replace(after, last));
    Some(match found {
        Some(steps) => event("steps", &Columns::of(&steps), last),
        None => event("again", &json!({}), last),
    })
}

fn event(name: &str, data: &impl Serialize, after: u64) -> String {
    // JSON has no line breaks of its own.
    let data = serde_json::to_string(data).expect("what is told can be written as JSON");
    format!("event: {name}\nid: {after}\ndata: {data}\n\n")
}

async fn send(page: &mpsc::Sender<Bytes>, news: String) -> Result<(), ()> {
    match timeout(PATIENCE, page.send(Bytes::from(news))).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(()),
    }
}
