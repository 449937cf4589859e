//! Events of controllers and the scheduler, for people to read.

use control::action::{Note, Severity};
use objects::event::{Event, EventSource};
use runtime::Client;
use runtime::recorder::{Recorder, Teller, channel as recorder};

/// Notes that may wait.
const QUEUE: usize = 1024;

/// The telling side; cheap to clone.
#[derive(Clone)]
pub(crate) struct Events(Teller);

impl Events {
    /// Tells, unless too much is waiting already.
    pub(crate) fn tell(&self, by: &'static str, note: &Note) {
        self.0.tell(render(by, note.clone()));
    }
}

/// Makes both sides.
pub(crate) fn channel(client: Client) -> (Events, Recorder) {
    let (teller, recorder) = recorder(client, QUEUE);
    (Events(teller), recorder)
}

fn render(by: &'static str, note: Note) -> Event {
    let severity = match note.severity {
        Severity::Normal => "Normal",
        Severity::Warning => "Warning",
    };
    Event {
        involved_object: note.about,
        reason: note.reason.to_owned(),
        message: note.message,
        source: EventSource { component: by.to_owned(), ..EventSource::default() },
        severity: severity.to_owned(),
        reporting_component: by.to_owned(),
        ..Event::blank()
    }
}
