-- GCRA on the server's clock. KEYS: 1 bucket. ARGV: 1 interval and 2 depth in
-- microseconds, 3 permits wanted; negative: returned.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local interval, depth, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local free = math.floor((now + depth - full) / interval + 0.000001)
local taken = math.min(wanted, math.max(free, 0))
if taken ~= 0 then
  full = math.max(full + taken * interval, now)
  redis.call('SET', KEYS[1], string.format('%.3f', full), 'PX',
    string.format('%d', math.ceil((full - now) / 1000) + 1000))
end
return {taken, string.format('%d', math.max(0, math.ceil(full + interval - depth - now)))}
