//! Tests of the block device on a real file, with correct requests and with garbage.

use std::io::Read;
use std::os::unix::fs::FileExt;

use super::*;
use crate::testing::{Buffer, DriverQueue, FakeInterrupt, INDIRECT, NEXT, WRITE, activation, ram};

const SECTORS: u64 = 64;
const READ: u32 = 0;
const WRITE_OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

struct Fixture {
    file: File,
    device: Blk,
    driver: DriverQueue,
    handler: Box<dyn Handler>,
}

impl Fixture {
    /// A disk of 64 sectors, each full of its own number.
    fn new(read_only: bool) -> Self {
        let named = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..SECTORS as u8).flat_map(|n| [n; 512]).collect();
        named.as_file().write_all_at(&content, 0).unwrap();
        let file = named.reopen().unwrap();
        let mut device =
            Blk::new(named.into_file(), read_only, "serial-0123456789abcdefgh").unwrap();
        let driver = DriverQueue::new(&ram(2), 0, 256);
        let features = 1 << VIRTIO_BLK_F_FLUSH;
        let interrupt = Arc::new(FakeInterrupt::default());
        let handler = device
            .activate(activation(&[&driver], features, interrupt))
            .unwrap();
        Self {
            file,
            device,
            driver,
            handler,
        }
    }

    /// Sends one request and returns its status and the used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let header = self.driver.readable(&header(kind, sector));
        let status = self.driver.writable(1);
        let chain: Vec<Buffer> = [&[header], data, &[status]].concat();
        let head = self.driver.add(&chain);
        assert_eq!(self.handler.serve(Event::Queue(0)), Served::Done);
        let (used, written) = self.driver.used().unwrap();
        assert_eq!(used, head);
        (self.driver.bytes(status)[0], written)
    }

    fn read(&mut self, sector: u64, length: usize) -> (u8, u32, Vec<u8>) {
        let buffer = self.driver.writable(length);
        let (status, written) = self.request(READ, sector, &[buffer]);
        (status, written, self.driver.bytes(buffer))
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        let buffer = self.driver.readable(data);
        self.request(WRITE_OUT, sector, &[buffer]).0
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|(sector, count, flags)| {
                [
                    &sector.to_le_bytes()[..],
                    &count.to_le_bytes(),
                    &flags.to_le_bytes(),
                ]
                .concat()
            })
            .collect();
        let buffer = self.driver.readable(&bytes);
        self.request(kind, 0, &[buffer]).0
    }

    fn content(&mut self) -> Vec<u8> {
        let mut content = Vec::new();
        std::io::Seek::rewind(&mut self.file).unwrap();
        self.file.read_to_end(&mut content).unwrap();
        content
    }

    fn sector_on_host(&mut self, sector: usize) -> Vec<u8> {
        self.content()[sector * 512..][..512].to_vec()
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

#[test]
fn a_read_brings_the_sectors_and_counts_the_status_byte() {
    let (status, written, data) = Fixture::new(false).read(3, 1024);
    assert_eq!((status, written), (OK, 1025));
    assert_eq!(data, [[3; 512], [4; 512]].concat());
}

#[test]
fn reads_out_of_order_each_bring_their_own_sectors() {
    let mut disk = Fixture::new(false);
    for sector in [9, 10, 5, 63, 0, 1] {
        assert_eq!(disk.read(sector, 512).2, [sector as u8; 512]);
    }
}

#[test]
fn a_write_reaches_the_file_and_is_read_back() {
    let mut disk = Fixture::new(false);
    assert_eq!(disk.write(7, &[0xee; 1024]), OK);
    assert_eq!(disk.sector_on_host(8), [0xee; 512]);
    assert_eq!(disk.read(8, 1024).2, [[0xee; 512], [9; 512]].concat());
}

#[test]
fn data_may_be_scattered_in_any_way() {
    let mut disk = Fixture::new(false);
    let pieces = [1, 510, 0, 513].map(|length| disk.driver.writable(length));
    assert_eq!(disk.request(READ, 1, &pieces), (OK, 1025));
    let data: Vec<u8> = pieces.iter().flat_map(|p| disk.driver.bytes(*p)).collect();
    assert_eq!(data, [[1; 512], [2; 512]].concat());
}

#[test]
fn header_data_and_status_may_share_descriptors() {
    let mut disk = Fixture::new(false);
    let whole = [header(WRITE_OUT, 2), vec![0xdd; 512]].concat();
    let (front, back) = (
        disk.driver.readable(&whole[..9]),
        disk.driver.readable(&whole[9..]),
    );
    let status = disk.driver.writable(1);
    disk.driver.add(&[front, back, status]);
    disk.handler.serve(Event::Queue(0));
    assert_eq!(disk.driver.bytes(status), [OK]);
    assert_eq!(disk.sector_on_host(2), [0xdd; 512]);
}

#[test]
fn nothing_beyond_the_end_is_read_or_written() {
    let mut disk = Fixture::new(false);
    assert_eq!(disk.read(SECTORS - 1, 1024).0, IO_ERROR);
    assert_eq!(disk.read(SECTORS, 512).0, IO_ERROR);
    assert_eq!(disk.read(u64::MAX, 512).0, IO_ERROR);
    assert_eq!(disk.read(1 << 55, 512).0, IO_ERROR);
    assert_eq!(disk.write(SECTORS - 1, &[1; 1024]), IO_ERROR);
    assert_eq!(disk.content().len() as u64, SECTORS * 512);
    assert_eq!(disk.sector_on_host(63), [63; 512]);
}

#[test]
fn part_of_a_sector_is_refused() {
    let mut disk = Fixture::new(false);
    assert_eq!(disk.read(0, 511).0, IO_ERROR);
    assert_eq!(disk.write(0, &[1; 513]), IO_ERROR);
    assert_eq!(disk.sector_on_host(0), [0; 512]);
}

#[test]
fn a_read_only_disk_offers_and_allows_no_change() {
    let mut disk = Fixture::new(true);
    let features = disk.device.profile().features;
    assert_eq!(
        features & (1 << VIRTIO_BLK_F_RO | 1 << VIRTIO_BLK_F_DISCARD),
        1 << VIRTIO_BLK_F_RO
    );
    assert_eq!(disk.write(0, &[1; 512]), IO_ERROR);
    assert_eq!(disk.ranges(DISCARD, &[(1, 8, 0)]), IO_ERROR);
    assert_eq!(disk.ranges(WRITE_ZEROES, &[(1, 8, 0)]), IO_ERROR);
    assert_eq!(disk.sector_on_host(1), [1; 512]);
    assert_eq!(disk.request(FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn get_id_tells_the_first_20_bytes_of_the_serial_number() {
    let mut disk = Fixture::new(false);
    let buffer = disk.driver.writable(20);
    assert_eq!(disk.request(GET_ID, 0, &[buffer]), (OK, 21));
    assert_eq!(disk.driver.bytes(buffer), b"serial-0123456789abc");
}

#[test]
fn get_id_without_room_fails() {
    let mut disk = Fixture::new(false);
    let buffer = disk.driver.writable(19);
    assert_eq!(disk.request(GET_ID, 0, &[buffer]).0, IO_ERROR);
}

#[test]
fn a_request_beyond_what_was_announced_is_refused() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(1 << 30).unwrap();
    let mut device = Blk::new(named.into_file(), false, "").unwrap();
    let mut driver = DriverQueue::new(&ram(2), 0, 256);
    let interrupt = Arc::new(FakeInterrupt::default());
    let mut handler = device
        .activate(activation(&[&driver], 0, interrupt))
        .unwrap();
    let mut config = [0; 16];
    device.read_config(0, &mut config);
    let segment = u32::from_le_bytes(config[8..12].try_into().unwrap());
    for (length, expected) in [(segment, OK), (segment + 512, IO_ERROR)] {
        let part = Buffer {
            length,
            ..driver.readable(&[1; 512])
        };
        let (head, status) = (driver.readable(&header(WRITE_OUT, 0)), driver.writable(1));
        driver.add(&[vec![head], vec![part; 254], vec![status]].concat());
        handler.serve(Event::Queue(0));
        assert_eq!(driver.bytes(status), [expected]);
    }
}

#[test]
fn flush_succeeds_and_an_unknown_request_is_unsupported() {
    let mut disk = Fixture::new(false);
    assert_eq!(disk.request(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(disk.request(99, 0, &[]), (UNSUPPORTED, 1));
}

/// Whether the file system of the temporary directory can zero a range in place; tmpfs, for one, can't.
fn zero_range_works() -> bool {
    use nix::fcntl::{FallocateFlags, fallocate};
    let file = tempfile::tempfile().unwrap();
    let how = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    match fallocate(&file, how, 0, 512) {
        Ok(()) => true,
        Err(nix::Error::EOPNOTSUPP) => false,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn zeroed_and_discarded_ranges_read_as_zero_and_the_size_stays() {
    let mut disk = Fixture::new(false);
    let zeroed = disk.ranges(WRITE_ZEROES, &[(1, 2, 0), (5, 1, 1), (9, 0, 0)]);
    if zero_range_works() {
        assert_eq!(zeroed, OK);
    } else {
        // The driver writes the zeroes itself when it is told so.
        assert_eq!(zeroed, UNSUPPORTED);
        assert_eq!(disk.ranges(WRITE_ZEROES, &[(1, 2, 1), (5, 1, 1)]), OK);
    }
    assert_eq!(disk.ranges(DISCARD, &[(62, 2, 0)]), OK);
    let numbers: Vec<u8> = disk.content().chunks(512).map(|sector| sector[0]).collect();
    assert_eq!(numbers[..7], [0, 0, 0, 3, 4, 0, 6]);
    assert_eq!(numbers[61..], [61, 0, 0]);
}

#[test]
fn one_bad_range_changes_nothing() {
    let mut disk = Fixture::new(false);
    for bad in [(63, 2, 0), (u64::MAX, 1, 0), (0, u32::MAX, 0)] {
        assert_eq!(disk.ranges(WRITE_ZEROES, &[(1, 1, 0), bad]), IO_ERROR);
    }
    assert_eq!(disk.ranges(WRITE_ZEROES, &[(1, 1, 2)]), UNSUPPORTED);
    assert_eq!(disk.ranges(DISCARD, &[(1, 1, 1)]), UNSUPPORTED);
    assert_eq!(disk.ranges(DISCARD, &[(1, 1, 0); 17]), IO_ERROR);
    assert_eq!(disk.sector_on_host(1), [1; 512]);
}

#[test]
fn a_range_cut_short_is_refused() {
    let mut disk = Fixture::new(false);
    let buffer = disk.driver.readable(&[0; 15]);
    assert_eq!(disk.request(DISCARD, 0, &[buffer]).0, IO_ERROR);
}

#[test]
fn buffers_outside_of_ram_fail_before_anything_is_moved() {
    let mut disk = Fixture::new(false);
    let good = disk.driver.writable(512);
    let bad = Buffer {
        address: (2 << 20) - 256,
        length: 512,
        flags: WRITE,
    };
    assert_eq!(disk.request(READ, 1, &[good, bad]).0, IO_ERROR);
    assert_eq!(disk.driver.bytes(good), [0xaa; 512]);
}

#[test]
fn data_of_the_wrong_direction_is_not_touched() {
    let mut disk = Fixture::new(false);
    let readable = disk.driver.readable(&[0x55; 512]);
    assert_eq!(disk.request(READ, 1, &[readable]), (OK, 1));
    assert_eq!(disk.driver.bytes(readable), [0x55; 512]);
    let writable = disk.driver.writable(512);
    assert_eq!(disk.request(WRITE_OUT, 1, &[writable]).0, OK);
    assert_eq!(disk.sector_on_host(1), [1; 512]);
}

#[test]
fn a_short_header_is_refused() {
    let mut disk = Fixture::new(false);
    let (header, status) = (disk.driver.readable(&[0; 15]), disk.driver.writable(1));
    disk.driver.add(&[header, status]);
    disk.handler.serve(Event::Queue(0));
    assert_eq!(disk.driver.bytes(status), [IO_ERROR]);
}

#[test]
fn a_request_without_a_status_byte_comes_back_empty() {
    let mut disk = Fixture::new(false);
    let (header, empty) = (
        disk.driver.readable(&header(FLUSH, 0)),
        disk.driver.writable(0),
    );
    disk.driver.add(&[header, empty]);
    assert_eq!(disk.handler.serve(Event::Queue(0)), Served::Done);
    assert_eq!(disk.driver.used(), Some((0, 0)));
}

#[test]
fn a_descriptor_loop_is_an_error_and_not_an_end() {
    let mut disk = Fixture::new(false);
    let buffer = disk.driver.writable(512);
    disk.driver.set_descriptor(0, buffer, NEXT, 0);
    disk.driver.publish(0);
    assert_eq!(disk.handler.serve(Event::Queue(0)), Served::Done);
    assert_eq!(disk.driver.used(), Some((0, 1)));
}

#[test]
fn an_indirect_table_within_an_indirect_table_is_refused() {
    let mut disk = Fixture::new(false);
    let mut inner = 0x10_0000u64.to_le_bytes().to_vec();
    inner.extend([16, 0, 0, 0, INDIRECT as u8, 0, 0, 0]);
    let mut table = disk.driver.readable(&inner);
    table.flags = INDIRECT;
    disk.driver.add(&[table]);
    assert_eq!(disk.handler.serve(Event::Queue(0)), Served::Done);
    assert_eq!(disk.driver.used(), Some((0, 0)));
}

#[test]
fn a_head_beyond_the_ring_breaks_the_device() {
    let mut disk = Fixture::new(false);
    disk.driver.publish(256);
    assert_eq!(disk.handler.serve(Event::Queue(0)), Served::Broken);
}

#[test]
fn the_logical_block_stays_a_sector() {
    let features = Fixture::new(false).device.profile().features;
    const BLK_SIZE: u64 = 1 << 6;
    assert_eq!(features & BLK_SIZE, 0);
}

#[test]
fn configuration_space_tells_the_capacity_and_ends() {
    let disk = Fixture::new(false);
    let mut config = [0xff; 64];
    disk.device.read_config(0, &mut config);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[24], 3, "a physical block is 2^3 sectors");
    assert_eq!(config[26..28], 8u16.to_le_bytes());
    assert_eq!(config[60..], [0; 4]);
    disk.device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 64]);
}
