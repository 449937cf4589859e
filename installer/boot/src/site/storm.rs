//! A fleet of simulated machines on a bad network, with a server that is killed at any moment.
//!
//! Everything follows from a seed: what is lost, doubled, late, and when the server dies.

use super::tests::{BIOS, Bench, OTHER_UUID, SEED, request, select};
use super::*;
use crate::dhcp::{Kind, Message};

const MACHINES: [&str; 6] = [
    "52:54:00:00:01:0c",
    "52:54:00:00:01:0d",
    "52:54:00:00:01:0e",
    "52:54:00:00:09:01",
    "52:54:00:00:09:02",
    "52:54:00:00:09:03",
];
/// Rounds of half a second until everybody must have got through.
const ROUNDS: u64 = 2000;

/// Numbers from a seed; good enough to choose by.
struct Dice(u64);

impl Dice {
    fn one_in(&mut self, sides: u64) -> bool {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33).is_multiple_of(sides)
    }
}

/// Where a machine is on its road.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Discover,
    Select(Ipv4Addr),
    Loader(Ipv4Addr),
    Script(Ipv4Addr),
    Kernel(Ipv4Addr),
    /// Booted, or held by its script.
    Done(Ipv4Addr),
}

struct Machine {
    mac: Mac,
    is_planned: bool,
    step: Step,
    asked: Option<u64>,
}

impl Machine {
    fn new(mac: &str) -> Self {
        let mac = mac.parse().unwrap();
        // 0e is not in the plan either, though it looks like its neighbours.
        let is_planned = MACHINES[..2].contains(&mac_text(mac).as_str());
        Self { mac, is_planned, step: Step::Discover, asked: None }
    }

    /// Does what is next; packets to and from the server may be lost or doubled.
    fn act(&mut self, bench: &mut Bench, dice: &mut Dice, round: u64) {
        let message = match self.step {
            Step::Discover => request(Kind::Discover, self.mac, BIOS, None),
            Step::Select(address) => select(self.mac, BIOS, None, SEED, address),
            Step::Loader(address) => {
                if !dice.one_in(5) {
                    assert_eq!(bench.fetch(address, Fetch::Loader), Verdict::Serve);
                    self.step = Step::Script(address);
                }
                return;
            }
            Step::Script(address) => {
                let script = bench.script(&format!("mac={}", self.mac));
                assert_eq!(script.contains("\nkernel "), self.is_planned, "{script}");
                let held = bench.site.holder(address, bench.now) == Some(self.mac);
                // A lease that ran out while the network was down: firmware starts over.
                self.step = if held { Step::Kernel(address) } else { Step::Discover };
                return;
            }
            Step::Kernel(address) => {
                let expected = if self.is_planned { Verdict::Serve } else { Verdict::Refuse };
                assert_eq!(bench.fetch(address, Fetch::Kernel), expected);
                self.step = Step::Done(address);
                return;
            }
            Step::Done(_) => return,
        };
        // Firmware that hears nothing for ten seconds begins anew.
        let asked = *self.asked.get_or_insert(round);
        if round - asked > 20 {
            (self.step, self.asked) = (Step::Discover, None);
            return;
        }
        for _ in 0..=u8::from(dice.one_in(10)) {
            if dice.one_in(4) {
                continue;
            }
            let answer = bench.relayed(&message);
            if !dice.one_in(4) {
                self.hear(answer.as_ref());
            }
        }
    }

    fn hear(&mut self, answer: Option<&Message>) {
        let Some(answer) = answer else {
            return;
        };
        let before = self.step;
        self.step = match (answer.kind(), self.step) {
            (Some(Kind::Offer), Step::Discover) => Step::Select(answer.your_address),
            (Some(Kind::Ack), Step::Select(address)) => {
                assert_eq!(answer.your_address, address);
                Step::Loader(address)
            }
            (Some(Kind::Nak), Step::Select(_)) => Step::Discover,
            _ => before,
        };
        if self.step != before {
            self.asked = None;
        }
    }

    fn address(&self) -> Option<Ipv4Addr> {
        match self.step {
            Step::Loader(address)
            | Step::Script(address)
            | Step::Kernel(address)
            | Step::Done(address) => Some(address),
            Step::Discover | Step::Select(_) => None,
        }
    }
}

fn mac_text(mac: Mac) -> String {
    mac.to_string()
}

fn run(seed: u64) {
    let (mut bench, mut dice) = (Bench::new(), Dice(seed));
    let mut machines = MACHINES.map(Machine::new);
    for round in 0..ROUNDS {
        bench.now = bench.now.plus(Duration::from_millis(500));
        for machine in &mut machines {
            if !dice.one_in(3) {
                machine.act(&mut bench, &mut dice, round);
            }
        }
        if dice.one_in(25) {
            let told = bench.site.view(bench.now);
            bench.kill();
            let again = bench.site.view(bench.now);
            for (told, again) in told.machines.iter().zip(&again.machines) {
                assert_eq!((&told.phases, &told.standing), (&again.phases, &again.standing));
                assert_eq!(told.addresses, again.addresses);
            }
        }
        let held: Vec<_> = machines.iter().filter_map(Machine::address).collect();
        let mut distinct = held.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(held.len(), distinct.len(), "one address twice: {held:?}");
        if machines.iter().all(|machine| matches!(machine.step, Step::Done(_))) {
            return;
        }
    }
    panic!("not all got through: {:?}", machines.map(|machine| machine.step));
}

#[test]
fn whatever_is_lost_every_machine_gets_through_and_no_address_twice() {
    for seed in 0..300 {
        // The seed is in the panic's message by this line.
        println!("seed {seed}");
        run(seed);
    }
}

#[test]
fn a_stranger_with_a_planned_uuid_holds_both_and_loses_neither() {
    let mut bench = Bench::new();
    let other: Mac = MACHINES[1].parse().unwrap();
    bench.lease(other, BIOS, Some(OTHER_UUID));
    bench.lease(MACHINES[3].parse().unwrap(), BIOS, Some(OTHER_UUID));
    assert!(bench.view_of(other).quarantined);
    assert_eq!(bench.lease(other, BIOS, Some(OTHER_UUID)), Ipv4Addr::new(10, 98, 1, 13));
}
