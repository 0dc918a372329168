# What Rack and Rails read of bodies, for tests/bodies.rs. Lines on standard input are BASE64(field), BASE64(type) and
# BASE64(body); answers are "=BASE64(value)" or "Absent". What they refuse is absent.
require "base64"
require "json"
require "rack"
require "stringio"

STDIN.each_line do |line|
  field, type, body = line.chomp.split(/ /, -1).map { |part| Base64.decode64(part) }
  env = Rack::MockRequest.env_for("/", method: "POST", input: body, "CONTENT_TYPE" => type)
  env.delete("CONTENT_TYPE") if type.empty?
  found = begin
    type == "application/json" ? JSON.parse(body) : Rack::Request.new(env).POST
  rescue StandardError
    nil
  end
  field.scan(/[^\[\]]+/) { |key| found = found.is_a?(Hash) ? found[key] : nil }
  found = nil unless found.is_a?(String) && found.dup.force_encoding("UTF-8").valid_encoding?
  puts found ? "=" + Base64.strict_encode64(found) : "Absent"
  STDOUT.flush
end
