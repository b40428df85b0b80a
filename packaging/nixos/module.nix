# NixOS module: services.meshd and services.mesh-relay.
#
#   imports = [ ./meshd/packaging/nixos/module.nix ];
#   services.meshd = {
#     enable = true;
#     openFirewall = true;
#     networks.home = {
#       addresses = [ "10.77.0.1/24" ];
#       relays = [ "mesh://…@relay.example.org:443" ];
#       peers.bob = { id = "…"; addresses = [ "10.77.0.2" ]; };
#     };
#   };
#
# Units, D-Bus policy and polkit actions are the ones of the package, so that NixOS and Debian run the same sandbox.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkEnableOption mkIf mkMerge mkOption types;

  cfg = config.services.meshd;
  relay = config.services.mesh-relay;
  toml = pkgs.formats.toml { };
  # What is not set is not written, so that the program's own defaults hold.
  withoutNulls = lib.filterAttrs (_: value: value != null);
  optionalString = description: mkOption {
    type = types.nullOr types.str;
    default = null;
    inherit description;
  };
  addressList = description: mkOption {
    type = types.listOf types.str;
    default = [ ];
    inherit description;
  };

  peerOptions = {
    options = {
      id = mkOption {
        type = types.str;
        description = "Node ID; of a stock WireGuard peer its base64 public key.";
      };
      addresses = addressList "Overlay addresses beside the derived one.";
      routes = addressList "Prefixes behind this peer.";
      endpoints = addressList "Where it can be reached without any relay, as address:port.";
      wireguard = mkOption {
        type = types.bool;
        default = false;
        description = "A stock WireGuard device.";
      };
      pskFile = optionalString "File with the WireGuard preshared key. It is read by systemd, as root, when meshd starts.";
    };
  };

  networkOptions = {
    options = {
      interface = optionalString "Name of the interface, at most 15 characters; mesh-<name> by default.";
      id = optionalString "Network ID; derived from the name by default.";
      autostart = mkOption {
        type = types.bool;
        default = true;
        description = "Bring the network up when meshd starts.";
      };
      mtu = mkOption {
        type = types.nullOr (types.ints.between 1280 9000);
        default = null;
        description = "Largest packet of the overlay in bytes: a cap. What is used is found out for each path.";
      };
      addresses = addressList "Overlay addresses of this host beside the derived IPv6 one, with prefix length.";
      relays = addressList "Relays, as mesh://<relay id>@host:port.";
      identityFile = optionalString ''
        File with this host's key, for example one that agenix or sops-nix has decrypted. It is read by systemd, as
        root, when meshd starts. By default meshd makes a key of its own in /var/lib/meshd.
      '';
      peers = mkOption {
        type = types.attrsOf (types.submodule peerOptions);
        default = { };
        description = "Peers by name.";
      };
    };
  };

  credential = name: "/run/credentials/meshd.service/${name}";
  keyName = network: "${network}.key";
  pskName = network: peer: "${network}.${peer}.psk";

  peerSettings = network: name: peer: withoutNulls {
    inherit name;
    inherit (peer) id;
    address = if peer.addresses == [ ] then null else peer.addresses;
    routes = if peer.routes == [ ] then null else peer.routes;
    endpoints = if peer.endpoints == [ ] then null else peer.endpoints;
    wireguard = if peer.wireguard then true else null;
    psk_file = if peer.pskFile == null then null else credential (pskName network name);
  };
  networkSettings = name: network: withoutNulls {
    inherit (network) interface id autostart mtu;
    address = if network.addresses == [ ] then null else network.addresses;
    relays = if network.relays == [ ] then null else network.relays;
    identity_file = if network.identityFile == null then null else credential (keyName name);
    peer =
      if network.peers == { } then null else lib.mapAttrsToList (peerSettings name) network.peers;
  };
  credentials = lib.concatLists (
    lib.mapAttrsToList (
      name: network:
      lib.optional (network.identityFile != null) "${keyName name}:${network.identityFile}"
      ++ lib.concatLists (
        lib.mapAttrsToList (
          peer: options: lib.optional (options.pskFile != null) "${pskName name peer}:${options.pskFile}"
        ) network.peers
      )
    ) cfg.networks
  );

  settings = lib.recursiveUpdate cfg.settings (
    if cfg.networks == { } then { } else { network = lib.mapAttrs networkSettings cfg.networks; }
  );
  configFile = toml.generate "meshd-config.toml" settings;
  relayFile = toml.generate "mesh-relay.toml" relay.settings;
  port = cfg.settings.listen_port or 41820;
  # Peers on the local network are found by multicast DNS.
  discovery = lib.optional (cfg.settings.lan_discovery or true) 5353;
in
{
  options.services.meshd = {
    enable = mkEnableOption "meshd, a mesh VPN that needs no control server";
    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      description = "The package with meshd, meshctl and mesh-relay.";
    };
    networks = mkOption {
      type = types.attrsOf (types.submodule networkOptions);
      default = { };
      description = "Networks by name.";
    };
    settings = mkOption {
      type = toml.type;
      default = { };
      example = { listen_port = 41820; };
      description = "What else /etc/meshd/config.toml shall say; see config.example.toml.";
    };
    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Let packets in to the mesh port, and multicast DNS unless settings.lan_discovery is false. Without it peers are
        still reached, but less often directly, and on a local network only with a relay.
      '';
    };
  };

  options.services.mesh-relay = {
    enable = mkEnableOption "mesh-relay, a relay and STUN server for meshd networks";
    settings = mkOption {
      type = toml.type;
      default = { };
      example = { nodes = [ "<node id>" ]; };
      description = "What /etc/mesh-relay/relay.toml shall say. Unless it says who may use the relay, nobody may.";
    };
    ports = mkOption {
      type = types.listOf types.port;
      default = [ 443 3478 ];
      description = "UDP ports that openFirewall opens: those of `listen` and `stun_alt_port`.";
    };
    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Let packets in to the relay's ports.";
    };
  };

  config = mkMerge [
    # One package for both: NixOS refuses a unit that comes twice.
    (mkIf (cfg.enable || relay.enable) {
      environment.systemPackages = [ cfg.package ];
      systemd.packages = [ cfg.package ];
    })
    (mkIf cfg.enable {
      assertions = [
        {
          assertion = !(cfg.openFirewall && port == 0);
          message = "services.meshd.openFirewall needs a fixed settings.listen_port, not 0";
        }
      ];
      environment.etc."meshd/config.toml".source = configFile;
      services.dbus.packages = [ cfg.package ];
      security.polkit.enable = true;
      boot.kernelModules = [ "tun" ];
      users.users.meshd = {
        isSystemUser = true;
        group = "meshd";
        description = "Mesh VPN daemon";
      };
      users.groups.meshd = { };
      networking.firewall.allowedUDPPorts = lib.optionals cfg.openFirewall ([ port ] ++ discovery);
      systemd.services.meshd = {
        wantedBy = [ "multi-user.target" ];
        # A changed configuration is reloaded; sessions that it does not touch go on.
        reloadTriggers = [ configFile ];
        serviceConfig = mkIf (credentials != [ ]) { LoadCredential = credentials; };
      };
    })
    (mkIf relay.enable {
      environment.etc."mesh-relay/relay.toml".source = relayFile;
      users.users.mesh-relay = {
        isSystemUser = true;
        group = "mesh-relay";
        description = "Mesh VPN relay";
      };
      users.groups.mesh-relay = { };
      networking.firewall.allowedUDPPorts = lib.optionals relay.openFirewall relay.ports;
      systemd.services.mesh-relay = {
        wantedBy = [ "multi-user.target" ];
        restartTriggers = [ relayFile ];
      };
    })
  ];
}
