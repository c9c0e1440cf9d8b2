//! Which way frames take, with a device that only this file knows: its memory is host memory that
//! the transport may not address.
#![allow(clippy::unwrap_used)]

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ditmesh_model::strided;
use ditmesh_transport::frame::Dtype;
use ditmesh_transport::link::{PostRecv, SendFrame};
use ditmesh_transport::region::{DeviceMemory, Memory};
use ditmesh_transport::{Epoch, Fabric, InProcessHub, MeshForm, PeerAddress, PeerId, RunId};

use super::*;
use crate::executor::packing::Packing;
use crate::executor::wire_tensor;

const EPOCH: Epoch = Epoch(1);
const SHAPE: [usize; 4] = [2, 3, 4, 5];

/// What became of the memory of a device.
#[derive(Debug, Default)]
struct Ledger {
    /// Whether what it is told to do is done.
    done: AtomicBool,
    blocks: AtomicUsize,
    staged: AtomicUsize,
}

#[derive(Debug)]
struct FakeDevice {
    number: u32,
    ledger: Arc<Ledger>,
}

impl DeviceMemory for FakeDevice {
    fn kind(&self) -> MemKind {
        MemKind::Cuda { device: self.number }
    }

    fn allocate(&self, len: usize) -> Result<Box<dyn Memory>, TransportError> {
        self.ledger.blocks.fetch_add(1, Ordering::SeqCst);
        let (kind, bytes) = (self.kind(), vec![0; len]);
        let ledger = Arc::clone(&self.ledger);
        Ok(Box::new(FakeBlock { kind, bytes, is_read: false, ledger }))
    }

    fn enter(&self) {}
}

struct FakeBlock {
    kind: MemKind,
    bytes: Vec<u8>,
    is_read: bool,
    ledger: Arc<Ledger>,
}

impl Memory for FakeBlock {
    fn kind(&self) -> MemKind {
        self.kind
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn host(&self) -> Option<&[u8]> {
        None
    }

    fn host_mut(&mut self) -> Option<&mut [u8]> {
        None
    }

    fn copy_from(
        &mut self,
        from: &dyn Memory,
        offset: usize,
        len: usize,
    ) -> Result<(), TransportError> {
        let from = from.as_any().downcast_ref::<Self>().unwrap();
        self.bytes[..len].copy_from_slice(&from.bytes[offset..offset + len]);
        Ok(())
    }

    fn is_idle(&self) -> bool {
        !self.is_read || self.ledger.done.load(Ordering::SeqCst)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// Ready when the device has done what it was told.
struct FakeReady(Arc<Ledger>);

impl Ready for FakeReady {
    fn wait(&self, deadline: Instant) -> bool {
        while !self.0.done.load(Ordering::SeqCst) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }
}

struct FakeEnd {
    number: u32,
    ledger: Arc<Ledger>,
}

fn fake(region: &mut Region) -> &mut FakeBlock {
    region.memory_mut().unwrap().as_any_mut().downcast_mut().unwrap()
}

impl DeviceEnd for FakeEnd {
    fn kind(&self) -> MemKind {
        MemKind::Cuda { device: self.number }
    }

    fn to_host(&mut self, tensor: &Tensor, host: &mut [f32]) -> Result<(), ModelError> {
        strided::copy_into(tensor, host)
    }

    fn to_device(&mut self, floats: &[f32], shape: &[usize]) -> Result<Tensor, ModelError> {
        self.ledger.staged.fetch_add(1, Ordering::SeqCst);
        Ok(Tensor::from_slice(floats, shape, &Device::Cpu)?)
    }

    fn write(
        &mut self,
        tensor: &Tensor,
        region: &mut Region,
    ) -> Result<Arc<dyn Ready>, ModelError> {
        let mut floats = vec![0.0; tensor.elem_count()];
        strided::copy_into(tensor, &mut floats)?;
        let bytes: &[u8] = bytemuck::cast_slice(&floats);
        fake(region).bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(Arc::new(FakeReady(Arc::clone(&self.ledger))))
    }

    fn read(&mut self, region: &mut Region, shape: &[usize]) -> Result<Tensor, ModelError> {
        let block = fake(region);
        block.is_read = true;
        let count: usize = shape.iter().product();
        let floats: Vec<f32> = block.bytes[..4 * count]
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        Ok(Tensor::from_vec(floats, shape, &Device::Cpu)?)
    }
}

/// One member with a device, or without.
struct Member {
    packing: Packing,
    transport: Arc<dyn Transport>,
    link: Arc<dyn Link>,
    ledger: Arc<Ledger>,
    /// Links end with it.
    _fabric: Arc<dyn Fabric>,
}

/// Two members whose devices have these numbers; a fabric of one without does not know of it.
fn pair(devices: [Option<u32>; 2], fabrics_know: bool) -> [Member; 2] {
    let hub = InProcessHub::new();
    let ledgers = [Arc::<Ledger>::default(), Arc::default()];
    let device = |rank: usize| {
        let (number, ledger) = (devices[rank]?, Arc::clone(&ledgers[rank]));
        Some(Arc::new(FakeDevice { number, ledger }) as Arc<dyn DeviceMemory>)
    };
    let fabric = |rank: usize| hub.fabric_on(device(rank).filter(|_| fabrics_know));
    let fabrics = [fabric(0), fabric(1)];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let form = |rank: usize| {
        let address = fabrics[1 - rank].address();
        let peer = PeerAddress { id: PeerId(1 - rank as u32), name: "other".into(), address };
        let deadline = Instant::now() + Duration::from_secs(20);
        let (cluster, local) = ("test".into(), PeerId(rank as u32));
        MeshForm { cluster, epoch: EPOCH, local, peers: vec![peer], deadline }
    };
    let formed = runtime
        .block_on(async { tokio::join!(fabrics[0].form(form(0)), fabrics[1].form(form(1))) });
    let member = |rank: usize, transport: Arc<dyn Transport>| {
        let ledger = Arc::clone(&ledgers[rank]);
        let end = devices[rank].map(|number| {
            Box::new(FakeEnd { number, ledger: Arc::clone(&ledger) }) as Box<dyn DeviceEnd>
        });
        let packing = Packing::new(Port { device: Device::Cpu, end }, None);
        let link = transport.link(PeerId(1 - rank as u32)).unwrap();
        Member { packing, transport, link, ledger, _fabric: Arc::clone(&fabrics[rank]) }
    };
    [member(0, formed.0.unwrap()), member(1, formed.1.unwrap())]
}

fn message(step: usize) -> Message {
    Message::of_patch(MessageKind::Activation, step, None, SHAPE.to_vec())
}

fn tensor() -> Tensor {
    let floats: Vec<f32> = (0..120).map(|i| i as f32).collect();
    // Of strides that are not its own.
    let whole = Tensor::from_vec(floats, [2, 4, 3, 5].as_slice(), &Device::Cpu).unwrap();
    whole.transpose(1, 2).unwrap()
}

impl Member {
    fn send(&mut self, message: &Message) {
        let ways = (self.link.as_ref(), self.transport.as_ref());
        let payload = self.packing.pack(&tensor(), message, ways).unwrap();
        let meta = wire_tensor::meta(message, EPOCH);
        let _sent = self.link.send(SendFrame { run: RunId(1), tag: message.tag(), meta, payload });
    }

    fn post(
        &self,
        message: &Message,
    ) -> ditmesh_transport::Completion<ditmesh_transport::Received> {
        let region =
            self.packing.place(message, (self.link.as_ref(), self.transport.as_ref())).unwrap();
        let (run, tag, len) = (RunId(1), message.tag(), message.bytes());
        self.link.post_recv(PostRecv { run, tag, region, len })
    }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// One message from the first to the second; how many of each member's were staged.
fn carried(devices: [Option<u32>; 2], fabrics_know: bool, message: &Message) -> (bool, usize) {
    let [mut one, mut two] = pair(devices, fabrics_know);
    one.ledger.done.store(true, Ordering::SeqCst);
    let mut waiting = two.post(message);
    one.send(message);
    let received = waiting.wait_until(Instant::now() + Duration::from_secs(20)).unwrap();
    let on_device = received.region.kind().is_device();
    wire_tensor::check(&received, message, 0, EPOCH).unwrap();
    let got = two.packing.unpack(received, message).unwrap();
    assert_eq!((got.dims(), flat(&got)), (SHAPE.as_slice(), flat(&tensor())));
    (on_device, two.ledger.staged.load(Ordering::SeqCst))
}

#[test]
fn frames_between_two_of_one_device_stay_in_its_memory() {
    assert_eq!(carried([Some(3), Some(3)], true, &message(0)), (true, 0));
}

#[test]
fn frames_are_staged_where_one_end_or_what_carries_them_does_not_take_device_memory() {
    assert_eq!(carried([Some(3), Some(4)], true, &message(0)), (false, 1));
    assert_eq!(carried([Some(3), Some(3)], false, &message(0)), (false, 1));
    assert_eq!(carried([None, Some(3)], true, &message(0)), (false, 1));
    assert_eq!(carried([Some(3), None], true, &message(0)), (false, 0));
}

#[test]
fn what_is_coded_and_what_lives_in_host_memory_is_the_hosts_work() {
    let coded = Message { dtype: Dtype::F16, ..message(0) };
    assert_eq!(carried([Some(3), Some(3)], true, &coded), (false, 1));
    let latents = Message::of_patch(MessageKind::Sample, 0, None, SHAPE.to_vec());
    assert_eq!(carried([Some(3), Some(3)], true, &latents), (false, 0));
}

#[test]
fn a_frame_leaves_when_its_device_is_through_and_a_wait_for_it_has_a_deadline() {
    let [mut one, mut two] = pair([Some(3), Some(3)], true);
    let mut waiting = two.post(&message(0));
    one.send(&message(0));
    let early = waiting.wait_until(Instant::now() + Duration::from_millis(20)).map(|_| ());
    assert!(matches!(early, Err(TransportError::Deadline { .. })), "{early:?}");
    one.ledger.done.store(true, Ordering::SeqCst);
    let received = waiting.wait_until(Instant::now() + Duration::from_secs(20)).unwrap();
    let got = two.packing.unpack(received, &message(0)).unwrap();
    assert_eq!(flat(&got), flat(&tensor()));
}

#[test]
fn memory_is_used_again_when_its_reader_is_done_and_not_before() {
    let [mut one, mut two] = pair([Some(3), Some(3)], true);
    one.ledger.done.store(true, Ordering::SeqCst);
    let ledger = Arc::clone(&two.ledger);
    let mut carry = |step: usize| {
        let mut waiting = two.post(&message(step));
        one.send(&message(step));
        let received = waiting.wait_until(Instant::now() + Duration::from_secs(20)).unwrap();
        two.packing.unpack(received, &message(step)).unwrap();
        two.ledger.blocks.load(Ordering::SeqCst)
    };
    assert_eq!((carry(0), carry(1)), (1, 2), "a block was posted that is still read");
    ledger.done.store(true, Ordering::SeqCst);
    assert_eq!((carry(2), carry(3)), (2, 2), "a block is not used again");
}
