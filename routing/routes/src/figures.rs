//! Figures of a node's routing over its life: sessions, prefixes, flaps, convergence.
//!
//! Pure: what was seen and when goes in, the text of a scrape comes out (the text format of
//! Prometheus 0.0.4). Time is what has passed since the router began.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::birdc::{Counts, ProtocolRow};
use crate::survey::Survey;

/// What is remembered from look to look.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    sessions: BTreeMap<String, Session>,
    configurations: u64,
    /// Since when something is not as it should be.
    unsettled: Option<Duration>,
    /// How long that took the last time.
    converged: Option<Duration>,
}

/// One session with another router.
#[derive(Debug, Clone, Default)]
struct Session {
    kind: String,
    running: bool,
    /// BIRD's word on when it came into its state: another one means that it left it meanwhile.
    since: String,
    flaps: u64,
    counts: Counts,
}

impl Figures {
    /// Takes note that BIRD was given a new configuration.
    pub fn configured(&mut self, now: Duration) {
        self.configurations = self.configurations.saturating_add(1);
        self.unsettled.get_or_insert(now);
    }

    /// Takes note of what is seen. A session that left its running state since the look before
    /// has flapped, even if it is back.
    pub fn look<'a>(
        &mut self,
        rows: impl IntoIterator<Item = &'a ProtocolRow>,
        counts: &BTreeMap<String, Counts>,
        survey: &Survey,
        now: Duration,
    ) {
        let mut seen = BTreeMap::new();
        for row in rows {
            let before = self.sessions.remove(&row.name);
            let left = before.as_ref().is_some_and(|before| {
                before.running && (!row.is_running() || before.since != row.since)
            });
            let flaps = before.map_or(0, |before| before.flaps).saturating_add(u64::from(left));
            let session = Session {
                kind: row.kind.clone(),
                running: row.is_running(),
                since: row.since.clone(),
                flaps,
                counts: counts.get(&row.name).copied().unwrap_or_default(),
            };
            seen.insert(row.name.clone(), session);
        }
        self.sessions = seen;
        if survey.is_well() {
            if let Some(since) = self.unsettled.take() {
                self.converged = Some(now.saturating_sub(since));
            }
        } else {
            self.unsettled.get_or_insert(now);
        }
    }

    /// Since when routing is not as it was meant; `None` while it is.
    #[must_use]
    pub fn unsettled(&self) -> Option<Duration> {
        self.unsettled
    }

    /// Renders what a scrape shows.
    #[must_use]
    pub fn render(&self, survey: &Survey) -> String {
        let mut text = String::new();
        self.family(&mut text, "session_up", "gauge", |one| vec![("", u64::from(one.running))]);
        self.family(&mut text, "session_flaps_total", "counter", |one| vec![("", one.flaps)]);
        self.family(&mut text, "session_prefixes", "gauge", |one| {
            vec![
                ("imported", one.counts.imported),
                ("filtered", one.counts.filtered),
                ("exported", one.counts.exported),
            ]
        });
        single(&mut text, "differences", "gauge", survey.differences.len());
        single(&mut text, "announced_prefixes", "gauge", survey.announced.len());
        single(&mut text, "configurations_total", "counter", self.configurations);
        if let Some(took) = self.converged {
            let seconds = format!("{:.3}", took.as_secs_f64());
            single(&mut text, "convergence_seconds", "gauge", seconds);
        }
        text
    }

    fn family(
        &self,
        text: &mut String,
        name: &str,
        kind: &str,
        values: impl Fn(&Session) -> Vec<(&'static str, u64)>,
    ) {
        *text += &format!("# TYPE muster_routing_{name} {kind}\n");
        for (session, one) in &self.sessions {
            for (prefixes, value) in values(one) {
                let protocol = &one.kind;
                let kind = if prefixes.is_empty() {
                    String::new()
                } else {
                    format!(",kind=\"{prefixes}\"")
                };
                *text += &format!(
                    "muster_routing_{name}{{session=\"{session}\",protocol=\"{protocol}\"{kind}}} {value}\n"
                );
            }
        }
    }
}

fn single(text: &mut String, name: &str, kind: &str, value: impl std::fmt::Display) {
    *text += &format!("# TYPE muster_routing_{name} {kind}\nmuster_routing_{name} {value}\n");
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::birdc::{Reader, parse_counts, parse_protocols};
    use crate::fixture::intent;
    use crate::survey::BirdView;

    /// As BIRD 2.0.12 answers `show protocols all`, cut short.
    fn reply(state: &str, since: &str, info: &str) -> String {
        format!(
            "2002-Name       Proto      Table      State  Since         Info\n\
             1002-tor1       BGP        ---        {state}     {since}  {info}   \n\
             1006-  BGP state:          {info}\n\
             \x20    Neighbor address: 10.98.1.1\n\
             \x20  Channel ipv4\n\
             \x20    Table:          master4\n\
             \x20    Routes:         12 imported, 3 filtered, 1 exported, 12 preferred\n\
             \x20    Route change stats:     received   rejected   filtered    ignored   accepted\n\
             \x20    BGP Next hop:   10.98.1.12\n\
             1006-\n\
             0000 \n"
        )
    }

    #[test]
    fn a_session_that_came_back_between_two_looks_has_flapped() {
        let intent = intent("a-worker");
        let mut figures = Figures::default();
        let mut look = |at: u64, state: &str, since: &str, info: &str| {
            let bytes = reply(state, since, info);
            let reply = Reader::default().read(bytes.as_bytes()).unwrap().remove(0);
            let rows = parse_protocols(&reply);
            let mut survey = Survey::new(&intent, &BirdView::default(), &[]);
            survey.differences.clear();
            if !rows.iter().all(ProtocolRow::is_running) {
                survey.neighbours = vec![crate::survey::Neighbour {
                    name: "tor1".to_owned(),
                    kind: "BGP".to_owned(),
                    running: false,
                    since: String::new(),
                    info: String::new(),
                }];
            }
            figures.look(&rows, &parse_counts(&reply), &survey, Duration::from_millis(at));
            figures.render(&survey)
        };
        look(0, "up", "08:00:01", "Established");
        look(10_000, "up", "08:00:01", "Established");
        look(20_000, "start", "08:00:15", "Active");
        look(21_500, "up", "08:00:16", "Established");
        let text = look(30_000, "up", "08:00:25", "Established");
        expect![[r#"
            # TYPE muster_routing_session_up gauge
            muster_routing_session_up{session="tor1",protocol="BGP"} 1
            # TYPE muster_routing_session_flaps_total counter
            muster_routing_session_flaps_total{session="tor1",protocol="BGP"} 2
            # TYPE muster_routing_session_prefixes gauge
            muster_routing_session_prefixes{session="tor1",protocol="BGP",kind="imported"} 12
            muster_routing_session_prefixes{session="tor1",protocol="BGP",kind="filtered"} 3
            muster_routing_session_prefixes{session="tor1",protocol="BGP",kind="exported"} 1
            # TYPE muster_routing_differences gauge
            muster_routing_differences 0
            # TYPE muster_routing_announced_prefixes gauge
            muster_routing_announced_prefixes 2
            # TYPE muster_routing_configurations_total counter
            muster_routing_configurations_total 0
            # TYPE muster_routing_convergence_seconds gauge
            muster_routing_convergence_seconds 1.500
        "#]]
        .assert_eq(&text);
    }
}
