# meshd, meshctl and mesh-relay, with units, D-Bus policy, polkit actions, manual pages and completions.
# Needs a nixpkgs with Rust 1.95 or later.
{
  lib,
  rustPlatform,
  coreutils,
}:

rustPlatform.buildRustPackage {
  pname = "meshd";
  version = (lib.importTOML ../../Cargo.toml).workspace.package.version;

  src = lib.cleanSourceWith {
    src = ../..;
    filter = path: type: baseNameOf path != "target" && lib.cleanSourceFilter path type;
  };
  cargoLock.lockFile = ../../Cargo.lock;
  # The programs alone, not the tests.
  cargoBuildFlags = [ "--package=meshd" "--package=meshctl" "--package=mesh-relay" ];
  # The tests want root, network namespaces and Debian's tools: they run before a release, not here.
  doCheck = false;

  installPhase = ''
    runHook preInstall
    make install PREFIX=$out SYSCONFDIR=$out/etc POLKITDIR=$out/share/polkit-1/actions \
      DBUSDIR=$out/share/dbus-1/system.d AFTER_INSTALL=true \
      RELEASE_DIR=$(dirname "$(find target -path '*release/meshd' -type f | head -n 1)")
    substituteInPlace $out/lib/systemd/system/meshd.service --replace-fail =/bin/kill =${coreutils}/bin/kill
    rmdir $out/etc/meshd $out/etc/mesh-relay $out/etc
    runHook postInstall
  '';

  meta = {
    description = "Mesh VPN that needs no control server";
    license = with lib.licenses; [ mit asl20 ];
    platforms = lib.platforms.linux;
    mainProgram = "meshctl";
  };
}
