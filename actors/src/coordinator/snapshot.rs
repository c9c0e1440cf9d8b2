//! The cluster as it is at one moment, for `status`.

use super::State;
use super::replicas::{Replica, linked};
use crate::manifest::{DeviceKind, NodeSection};
use crate::membership::Member;
use crate::plan::mesh::DeviceMesh;
use crate::protocol::{DeviceId, LinkCarrier};
use crate::request::Degrees;
use crate::session::handshake::BUILD;
use crate::status::{
    ClusterStatus, ControlStatus, DeviceStatus, LinkStatus, MeshStatus, NodeStatus, RankStatus,
    RequestStatus,
};

impl State {
    pub(super) fn snapshot(&self) -> ClusterStatus {
        let mesh = self.mesh_status();
        let failed = match (&self.model, &self.desk.formation) {
            (Some(Err(_)), _) => true,
            (_, Some(formation)) => formation.failure().is_some(),
            _ => false,
        };
        ClusterStatus {
            cluster: self.manifest.cluster.name.clone(),
            build: BUILD.into(),
            coordinator: self.address.clone(),
            nodes: self.manifest.nodes.iter().map(|node| self.node_status(node)).collect(),
            mesh_absent: mesh.is_none().then(|| self.absent.clone()),
            mesh_failed: mesh.is_none() && failed,
            mesh,
            queued: (self.desk.dispatcher.waiting() + self.early.len()) as u32,
            running: self.desk.dispatcher.running() as u32,
            joins_refused: self.joins_refused,
            callers_refused: self.callers_refused
                + self.joins.callers_refused()
                + self.fabric.callers_refused(),
            requests: self.request_statuses(),
            actors: self.handle.actors() as u32,
            control: self.control_status(),
        }
    }

    fn control_status(&self) -> ControlStatus {
        let held = self.joins.holdings();
        ControlStatus {
            connections: held.connections as u32,
            streams: held.streams as u32,
            questions: held.callers as u32 + u32::from(self.examinations.is_under_way()),
        }
    }

    fn request_statuses(&self) -> Vec<RequestStatus> {
        let running = self.desk.dispatcher.under_way().into_iter().map(|(request, epoch, run)| {
            let (step, steps) = self.desk.runs.get(&run).map_or((0, 0), |run| run.step);
            RequestStatus { request, epoch, step, steps, waits_for: String::new() }
        });
        let waiting = self.desk.dispatcher.queue().into_iter().map(|(request, waits_for)| {
            RequestStatus { request, epoch: 0, step: 0, steps: 0, waits_for }
        });
        running.chain(waiting).collect()
    }

    fn node_status(&self, node: &NodeSection) -> NodeStatus {
        let member = Member::Agent(node.name.clone());
        NodeStatus {
            name: node.name.clone(),
            state: match self.desk.membership.describe(&member) {
                alive if alive == "alive" && self.desk.membership.is_leaving(&node.name) => {
                    let used = self.desk.membership.draining().contains(&node.name);
                    if used { "leaving".into() } else { "left".into() }
                }
                state => state,
            },
            incarnation: self.desk.membership.incarnation(&member).0,
            process: self.process(&member),
            devices: (0..)
                .zip(&node.devices)
                .map(|(index, section)| {
                    self.device_status(DeviceId { node: node.name.clone(), index }, section.kind)
                })
                .collect(),
        }
    }

    fn device_status(&self, device: DeviceId, kind: DeviceKind) -> DeviceStatus {
        let seated =
            self.desk.formation.as_ref().is_some_and(|formation| formation.is_seated(&device));
        let address = self.desk.membership.address(&device).to_string();
        let member = Member::Worker(device.clone());
        let state = match self.desk.membership.describe(&member) {
            _ if seated => "in mesh".into(),
            alive if alive == "alive" && self.desk.membership.is_ready(&device) => "ready".into(),
            other => other,
        };
        let model = self.model.as_ref().and_then(|model| model.as_ref().ok());
        let flops_per_s = model.and_then(|model| model.flops_per_s(&device));
        DeviceStatus {
            flops_per_s: flops_per_s.map(|rate| rate as u64),
            index: device.index,
            kind: kind.to_string(),
            state,
            incarnation: self.desk.membership.incarnation(&member).0,
            process: self.process(&member),
            address,
            callers_refused: self
                .sessions
                .get(&member)
                .map_or(0, |session| session.callers_refused),
        }
    }

    fn process(&self, member: &Member) -> u32 {
        self.sessions.get(member).map_or(0, |session| session.process)
    }

    /// The mesh, when all its replicas are formed.
    fn mesh_status(&self) -> Option<MeshStatus> {
        let Some(Ok(model)) = &self.model else { return None };
        let serving = self.desk.formation.as_ref()?.complete()?;
        let replicas = serving.iter().filter_map(|epoch| self.replicas.get(epoch));
        let degrees =
            Degrees { data_degree: serving.len() as u32, ..replicas.clone().next()?.degrees };
        let mut ranks = Vec::new();
        let mut links = Vec::new();
        for replica in replicas {
            let first = replica.data * replica.devices.len() as u32;
            ranks.extend(rank_statuses(replica, first)?);
            links.extend(self.link_statuses(replica, first));
        }
        ranks.sort_by_key(|rank| rank.rank);
        Some(MeshStatus {
            epoch: serving.iter().max().copied()?,
            model: model.name.clone(),
            dtype: model.dtype,
            degrees,
            ranks,
            links,
        })
    }

    fn link_statuses(&self, replica: &Replica, first: u32) -> Vec<LinkStatus> {
        let Some(Ok(model)) = &self.model else { return Vec::new() };
        let carrier = |a: u32, b: u32| {
            let formed = replica.ranks.as_ref()?.iter().find(|formed| formed.rank == a)?;
            formed.carriers.iter().find(|carrier| carrier.peer == b).cloned()
        };
        let node = |rank: u32| replica.devices.get(rank as usize).map(|device| &device.node);
        let statuses = linked(replica.degrees, &model.spec).into_iter().filter_map(|(a, b)| {
            let LinkCarrier { transport, why, .. } = carrier(a, b)?;
            let measured = self.links.between(node(a)?, node(b)?);
            Some(LinkStatus { a: first + a, b: first + b, transport, why, measured })
        });
        statuses.collect()
    }
}

fn rank_statuses(replica: &Replica, first: u32) -> Option<Vec<RankStatus>> {
    let mesh = DeviceMesh::new(Degrees { data_degree: 1, ..replica.degrees });
    let formed = replica.ranks.as_ref()?;
    let statuses = formed.iter().zip(&replica.devices).map(|(formed, device)| {
        let at = mesh.coordinates(formed.rank as usize);
        RankStatus {
            rank: first + formed.rank,
            device: device.to_string(),
            data: replica.data,
            cfg: at.cfg as u32,
            stage: at.stage as u32,
            sp: at.sp as u32,
            blocks: (formed.blocks.start, formed.blocks.end),
            weight_bytes_read: formed.weight_bytes_read,
        }
    });
    Some(statuses.collect())
}
