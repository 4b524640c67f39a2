//! Which of several processes this is, as the launcher's environment tells: torchrun, Open MPI's mpirun or
//! Slurm's srun, in this order, else one process by itself. And what such processes talk through.

use std::rc::Rc;

use flamingo_dataset::Rank;
use flamingo_model::DeviceChoice;

use crate::collective::{Alone, Collective};
use crate::error::TrainError;

/// Who started a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// A user or script.
    Nobody,
    /// torchrun, or who sets the variables that torchrun sets.
    Torchrun,
    /// Open MPI's mpirun.
    OpenMpi,
    /// Slurm's srun.
    Slurm,
}

/// What a process knows of its fellows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Who started it.
    pub launcher: Launcher,
    /// Which it is, of how many.
    pub rank: Rank,
    /// Which it is of those on its machine.
    pub local: usize,
    /// Host and port at which the first rank can be asked, if known.
    pub master: Option<(String, u16)>,
}

/// The variables of each launcher: rank, number of ranks, rank on the machine.
const VARIABLES: [(Launcher, [&str; 3]); 3] = [
    (Launcher::Torchrun, ["RANK", "WORLD_SIZE", "LOCAL_RANK"]),
    (
        Launcher::OpenMpi,
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ),
    (Launcher::Slurm, ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"]),
];

/// Where the first rank can be asked.
const MASTER: [&str; 2] = ["MASTER_ADDR", "MASTER_PORT"];

impl Launch {
    /// Reads the environment, of which `variable` gives the values.
    ///
    /// # Errors
    /// When a variable is not the number that its launcher would set.
    pub fn discover(variable: impl Fn(&str) -> Option<String>) -> Result<Self, TrainError> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is_set = |names: &[&str; 3]| names[..2].iter().all(|name| given(name).is_some());
        let found = VARIABLES.iter().find(|(_, names)| is_set(names));
        let Some((launcher, [index_name, count_name, local_name])) = found else {
            let (launcher, rank) = (Launcher::Nobody, Rank::ONLY);
            return Ok(Self { launcher, rank, local: 0, master: None });
        };
        let number = |name: &'static str, most: usize| {
            let value = given(name).unwrap_or_default();
            let number = value.parse().ok().filter(|number: &usize| *number <= most);
            let expected = || format!("a number from 0 to {most}");
            number.ok_or_else(|| TrainError::Launch { name, value, expected: expected() })
        };
        let count = number(count_name, RANKS_MAX)?.max(1);
        let index = number(index_name, count - 1)?;
        let local = given(local_name).map_or(Ok(0), |_| number(local_name, count - 1))?;
        let port = given(MASTER[1]).map(|_| number(MASTER[1], u16::MAX.into())).transpose()?;
        let master = given(MASTER[0]).zip(port.map(|port| port as u16));
        Ok(Self { launcher: *launcher, rank: Rank { index, count }, local, master })
    }

    /// The device of this rank. Where there are several ranks, GPUs are counted from that of the first rank
    /// of a machine, and `auto` is a GPU if the program was built for them: all ranks run on one kind.
    pub fn device(&self, choice: DeviceChoice) -> DeviceChoice {
        match choice {
            DeviceChoice::Cuda(first) => DeviceChoice::Cuda(first + self.local),
            DeviceChoice::Auto if self.rank.count > 1 => {
                if cfg!(feature = "cuda") {
                    DeviceChoice::Cuda(self.local)
                } else {
                    DeviceChoice::Cpu
                }
            }
            DeviceChoice::Auto | DeviceChoice::Cpu => choice,
        }
    }

    /// What the ranks talk through, of what the program was built with.
    fn transport(&self, device: DeviceChoice, built: Built) -> Result<Transport, TrainError> {
        let on_gpu = matches!(device, DeviceChoice::Cuda(_));
        let by_torchrun = self.launcher == Launcher::Torchrun;
        if by_torchrun && !on_gpu {
            return Err(TrainError::NoMpiLauncher { count: self.rank.count });
        }
        let (transport, feature, has_it) = if on_gpu && (by_torchrun || built.nccl || !built.mpi) {
            (Transport::Nccl, "nccl", built.nccl)
        } else {
            (Transport::Mpi, "mpi", built.mpi)
        };
        let count = self.rank.count;
        if has_it { Ok(transport) } else { Err(TrainError::NoTransport { count, feature }) }
    }

    /// Meets the other ranks, if there are any. `device` is that of this rank.
    ///
    /// # Errors
    /// When the program was built without what they would talk through, or they cannot be reached.
    pub fn connect(&self, device: DeviceChoice) -> Result<Rc<dyn Collective>, TrainError> {
        if self.rank.count == 1 {
            return Ok(Rc::new(Alone));
        }
        let built = Built { mpi: cfg!(feature = "mpi"), nccl: cfg!(feature = "nccl") };
        match (self.transport(device, built)?, device) {
            (Transport::Nccl, DeviceChoice::Cuda(gpu)) => self.connect_nccl(gpu),
            _ => self.connect_mpi(),
        }
    }

    #[cfg(feature = "mpi")]
    fn connect_mpi(&self) -> Result<Rc<dyn Collective>, TrainError> {
        Ok(Rc::new(crate::mpi_ranks::MpiRanks::connect(self)?))
    }

    #[cfg(not(feature = "mpi"))]
    fn connect_mpi(&self) -> Result<Rc<dyn Collective>, TrainError> {
        Err(TrainError::NoTransport { count: self.rank.count, feature: "mpi" })
    }

    #[cfg(feature = "nccl")]
    fn connect_nccl(&self, gpu: usize) -> Result<Rc<dyn Collective>, TrainError> {
        Ok(Rc::new(crate::nccl_ranks::NcclRanks::connect(self, gpu)?))
    }

    #[cfg(not(feature = "nccl"))]
    fn connect_nccl(&self, _gpu: usize) -> Result<Rc<dyn Collective>, TrainError> {
        Err(TrainError::NoTransport { count: self.rank.count, feature: "nccl" })
    }
}

/// More ranks than any machine room has.
const RANKS_MAX: usize = 1 << 20;

/// What ranks talk through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Mpi,
    Nccl,
}

/// What the program was built with.
#[derive(Debug, Clone, Copy)]
struct Built {
    mpi: bool,
    nccl: bool,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn discover(variables: &[(&str, &str)]) -> Result<Launch, TrainError> {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        Launch::discover(|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    const TORCHRUN: [(&str, &str); 5] = [
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node-0"),
        ("MASTER_PORT", "29500"),
    ];
    const OPEN_MPI: [(&str, &str); 3] = [
        ("OMPI_COMM_WORLD_RANK", "3"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "2"),
    ];
    const SLURM: [(&str, &str); 3] =
        [("SLURM_PROCID", "2"), ("SLURM_NTASKS", "6"), ("SLURM_LOCALID", "0")];

    #[test]
    fn launchers_are_known_by_their_variables_and_the_first_one_wins() {
        let check = |variables: &[(&str, &str)], launcher, index, count, local| {
            let found = discover(variables).unwrap();
            assert_eq!((found.launcher, found.local), (launcher, local), "{variables:?}");
            assert_eq!(found.rank, Rank { index, count }, "{variables:?}");
            found.master
        };
        assert_eq!(check(&[], Launcher::Nobody, 0, 1, 0), None);
        let master = check(&TORCHRUN, Launcher::Torchrun, 5, 8, 1);
        assert_eq!(master, Some(("node-0".to_owned(), 29500)));
        check(&OPEN_MPI, Launcher::OpenMpi, 3, 4, 2);
        check(&SLURM, Launcher::Slurm, 2, 6, 0);
        check(&[&SLURM[..], &OPEN_MPI].concat(), Launcher::OpenMpi, 3, 4, 2);
        check(&[&SLURM[..], &OPEN_MPI, &TORCHRUN].concat(), Launcher::Torchrun, 5, 8, 1);
        // Half of a launcher's variables are none; an empty one is none either.
        check(&[("RANK", "5")], Launcher::Nobody, 0, 1, 0);
        check(&[("RANK", ""), ("WORLD_SIZE", "8"), SLURM[0], SLURM[1]], Launcher::Slurm, 2, 6, 0);
        let slurm = [&SLURM[..], &TORCHRUN[3..]].concat();
        let master = check(&slurm, Launcher::Slurm, 2, 6, 0);
        assert_eq!(master, Some(("node-0".to_owned(), 29500)));
    }

    #[test]
    fn a_variable_that_is_no_such_number_is_named() {
        let check = |variables: &[(&str, &str)], expected: &str| {
            assert_eq!(discover(variables).unwrap_err().to_string(), expected);
        };
        let rank = "the environment's RANK is `8`, expected a number from 0 to 7";
        check(&[("RANK", "8"), ("WORLD_SIZE", "8")], rank);
        let size = "the environment's WORLD_SIZE is `many`, expected a number from 0 to 1048576";
        check(&[("RANK", "0"), ("WORLD_SIZE", "many")], size);
        let port = "the environment's MASTER_PORT is `70000`, expected a number from 0 to 65535";
        check(&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "70000")], port);
    }

    #[test]
    fn ranks_of_a_machine_take_one_gpu_each() {
        let (launch, alone) = (discover(&OPEN_MPI).unwrap(), discover(&[]).unwrap());
        assert_eq!(launch.device(DeviceChoice::Cuda(0)), DeviceChoice::Cuda(2));
        assert_eq!(launch.device(DeviceChoice::Cuda(4)), DeviceChoice::Cuda(6));
        assert_eq!(launch.device(DeviceChoice::Cpu), DeviceChoice::Cpu);
        assert_ne!(launch.device(DeviceChoice::Auto), DeviceChoice::Auto);
        assert_eq!(alone.device(DeviceChoice::Auto), DeviceChoice::Auto);
        assert_eq!(alone.device(DeviceChoice::Cuda(1)), DeviceChoice::Cuda(1));
    }

    #[test]
    fn what_ranks_need_and_the_program_lacks_is_named() {
        const CPU: DeviceChoice = DeviceChoice::Cpu;
        const GPU: DeviceChoice = DeviceChoice::Cuda(0);
        let check =
            |by: &[(&str, &str)], device, [mpi, nccl]: [bool; 2], expected: Result<_, &str>| {
                let found = discover(by).unwrap().transport(device, Built { mpi, nccl });
                match (found, expected) {
                    (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{by:?}"),
                    (Err(error), Err(words)) => {
                        assert!(error.to_string().contains(words), "{error}");
                        assert_eq!(error.exit_code(), 2);
                    }
                    (found, _) => panic!("{by:?} {device} {mpi} {nccl}: {found:?}"),
                }
            };
        let (mpi, nccl) = (Ok(Transport::Mpi), Ok(Transport::Nccl));
        check(&OPEN_MPI, CPU, [true, true], mpi);
        check(&OPEN_MPI, CPU, [false, true], Err("4 ranks need a build with `--features mpi`"));
        check(&OPEN_MPI, GPU, [true, false], mpi);
        check(&OPEN_MPI, GPU, [true, true], nccl);
        check(&SLURM, GPU, [false, false], Err("6 ranks need a build with `--features nccl`"));
        check(&TORCHRUN, GPU, [true, true], nccl);
        check(&TORCHRUN, GPU, [true, false], Err("8 ranks need a build with `--features nccl`"));
        check(&TORCHRUN, CPU, [true, true], Err("8 ranks on CPUs are to be started by mpirun"));
    }
}
