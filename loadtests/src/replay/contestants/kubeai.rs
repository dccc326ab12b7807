//! KubeAI: the mean of ten minutes, every ten seconds.
//!
//! ⌈mean of the last 60 samples of active requests / target⌉; missing samples count as zero. Up at
//! once, down when three looks in a row propose less. Its proxy holds while there is no replica,
//! starts the first one itself, and then releases every held request at once.

use std::collections::VecDeque;

use super::{Bounds, Contestant, Rules};
use crate::replay::trace::{SECOND, Us};
use crate::replay::world::{Hold, Victim, World};

const TICK: Us = 10 * SECOND;
const SAMPLES: usize = 60;
const LOWER: u32 = 3;

/// The autoscaler of one model.
#[derive(Debug)]
pub(crate) struct KubeAi {
    bounds: Bounds,
    target: f64,
    samples: VecDeque<u32>,
    lower: u32,
    next: Us,
}

impl KubeAi {
    pub(crate) fn new(bounds: Bounds, target: u32) -> Self {
        let samples = VecDeque::from(vec![0; SAMPLES]);
        Self { bounds, target: f64::from(target.max(1)), samples, lower: 0, next: TICK }
    }

    fn tick(&mut self, active: u32, current: u32) -> Option<u32> {
        self.samples.pop_front();
        self.samples.push_back(active);
        let mean = self.samples.iter().map(|n| f64::from(*n)).sum::<f64>() / SAMPLES as f64;
        let wanted = ((mean / self.target).ceil() as u32).clamp(self.bounds.min, self.bounds.max);
        if wanted >= current {
            self.lower = 0;
            return (wanted > current).then_some(wanted);
        }
        self.lower += 1;
        (self.lower >= LOWER).then(|| {
            self.lower = 0;
            wanted
        })
    }
}

impl Contestant for KubeAi {
    fn rules(&self) -> Rules {
        Rules {
            hold: Hold::AtZero,
            victim: Victim::Youngest,
            revives_draining: false,
            move_after: None,
            scales: true,
            measures_room: false,
            initial_replicas: self.bounds.min,
        }
    }

    fn next_look(&self) -> Us {
        self.next
    }

    fn look(&mut self, world: &World<'_>) -> Option<u32> {
        self.next += TICK;
        let counts = world.counts();
        self.tick(world.held() + world.in_flight(), counts.starting + counts.ready)
    }

    fn wants_pushes(&self) -> bool {
        true
    }

    /// The request itself asks for the first replica.
    fn on_push(&mut self, world: &World<'_>) -> Option<u32> {
        let counts = world.counts();
        (world.held() > 0 && counts.starting + counts.ready == 0).then_some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeai(min: u32) -> KubeAi {
        KubeAi::new(Bounds { min, max: 10, cooldown: 0, limit: 10, target: 10 }, 10)
    }

    #[test]
    fn a_step_reaches_its_size_after_ten_minutes() {
        let mut kubeai = kubeai(0);
        let mut current = 1;
        let mut counts = Vec::new();
        for _ in 0..60 {
            current = kubeai.tick(50, current).unwrap_or(current);
            counts.push(current);
        }
        // 50 active requests at 10 each want five: one more for each fifth of the window.
        assert_eq!([counts[11], counts[12], counts[24], counts[59]], [1, 2, 3, 5]);
    }

    #[test]
    fn three_lower_looks_in_a_row_take_it_down() {
        let mut kubeai = kubeai(1);
        kubeai.samples = VecDeque::from(vec![0; SAMPLES]);
        assert_eq!(kubeai.tick(0, 4), None);
        assert_eq!(kubeai.tick(0, 4), None);
        assert_eq!(kubeai.tick(0, 4), Some(1));
        assert_eq!(kubeai.tick(0, 4), None, "counted anew");
    }
}
