-- KEYS: 4 lease, 5 lock, 6 logins. ARGV: 3 owner, 4 lock's life in ms, 5 minimum
-- interval of logins in ms, 6 logins per hour, 7 known generation.
local lease, lock, logins = KEYS[4], KEYS[5], KEYS[6]
local generation, refused = number(lease, 'g'), number(lease, 'refused')
if generation > tonumber(ARGV[7]) and generation > refused and number(lease, 'ends') > now then
  return {'newer', generation}
end
local held = redis.call('GET', lock)
if held and held ~= ARGV[3] then return {'busy', redis.call('PTTL', lock)} end
local latest = tonumber(redis.call('LINDEX', logins, -1) or 0)
local free = latest + tonumber(ARGV[5])
local hour = tonumber(redis.call('LINDEX', logins, -tonumber(ARGV[6])) or 0)
if hour > 0 then free = math.max(free, hour + 3600000) end
if latest > 0 and free > now then return {'wait', free - now} end
redis.call('SET', lock, ARGV[3], 'PX', ARGV[4])
redis.call('RPUSH', logins, whole(now))
redis.call('LTRIM', logins, -1000, -1)
redis.call('EXPIRE', logins, 3700)
return {'go', redis.call('HINCRBY', lease, 'fence', 1), refused}
